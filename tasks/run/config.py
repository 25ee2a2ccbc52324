"""What every stage configuration shares: frozen, no unknown keys, and a named list of settings that do not change results."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take


class StageConfig(BaseModel):
    """Base of the stages' configuration models.

    `RUNTIME` names the settings that decide where and how fast a stage runs but never what it makes: they stay out of
    the cache key. Everything else changes the key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    RUNTIME: ClassVar[frozenset[str]] = frozenset()

    def key_fields(self) -> dict[str, Any]:
        """The settings that enter the cache key, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.RUNTIME))
