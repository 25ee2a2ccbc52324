"""Whether new volumes look like those that the store lists already."""

from collections.abc import Sequence
from dataclasses import dataclass

from storage.artifacts import Ref
from storage.errors import UserError
from storage.volume_store import VolumeStore
from tasks.drift.config import DriftConfig


@dataclass(frozen=True)
class Finding:
    """One reason to hold a batch.

    Attributes:
        name: of the check, such as `hu_shift`.
        value, limit: what was measured, and what was allowed.
        sentence: what a person reads: measured, allowed, which volumes (by id).
    """

    name: str
    value: float
    limit: float
    sentence: str


@dataclass(frozen=True)
class DriftVerdict:
    """What the gate found of a batch.

    Attributes:
        findings: reasons to hold it; empty: it passes.
        notes: what could not be checked and why, such as a store with too few volumes to compare with.
        picture: PNG: slices and histograms of the batch beside those of the store; no names in it.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    picture: bytes

    @property
    def held(self) -> bool:
        """Whether a person has to look."""
        return bool(self.findings)


class HeldError(UserError, RuntimeError):
    """A batch was held by the drift gate: its volumes are committed, none is listed."""

    def __init__(self, verdict: DriftVerdict, volumes: tuple[str, ...]) -> None:
        super().__init__("; ".join(finding.sentence for finding in verdict.findings))
        self.verdict = verdict
        self.volumes = volumes


def check_drift(store: VolumeStore, new: Sequence[str], snapshot: Ref | None, config: DriftConfig) -> DriftVerdict:
    """Compare new volumes with those of a snapshot.

    Args:
        store: has all of them committed.
        new: ids of the volumes that are not listed yet.
        snapshot: what the store lists now; None: nothing, so that only absolute limits are checked.
        config: limits.
    """
    raise NotImplementedError
