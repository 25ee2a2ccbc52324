"""The registered model in MLflow: versions are checkpoints, aliases say which is champion and which is challenger."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.artifacts import Ref

CHAMPION, CHALLENGER = "champion", "challenger"
MODEL = "prdit"
REFUSED = "prdit.refused"  # tag of a version that must not be promoted; its value says why


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model.

    Attributes:
        version: its number.
        checkpoint: reference of the checkpoint on the disk it was trained on; it may be gone there.
        run_id: MLflow run that made it.
        aliases: such as `champion`.
        tags: of the version; `REFUSED` among them.
    """

    version: int
    checkpoint: Ref
    run_id: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """The registered model of one MLflow server.

    Args:
        uri: tracking URI.
        name: of the registered model.
    Raises: TrackingUnavailableError: the server does not answer.
    """

    def __init__(self, uri: str, name: str = MODEL) -> None:
        raise NotImplementedError

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        raise NotImplementedError

    def find(self, name: str) -> ModelVersion | None:
        """A version by alias or number; None where there is none."""
        raise NotImplementedError

    def register(self, checkpoint: Ref, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """A version of a checkpoint; the one that there is already, where this checkpoint has one."""
        raise NotImplementedError

    def set_alias(self, alias: str, version: int) -> None:
        """Let an alias name a version."""
        raise NotImplementedError

    def delete_alias(self, alias: str) -> None:
        """Remove an alias; nothing happens where there is none."""
        raise NotImplementedError

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        raise NotImplementedError
