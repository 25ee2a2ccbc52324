"""What every stage configuration shares: frozen, no unknown keys, and a named list of settings that do not change results."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Device = Literal["auto", "cpu", "cuda"]
Attention = Literal["auto", "sdpa", "xformers", "plain", "published-flash"]


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


class ComputeConfig(StageConfig):
    """Where a stage that uses torch computes; none of it enters the cache key."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"device", "num_threads"})

    device: Device = Field("auto", description="'auto' takes CUDA where there is one")
    num_threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
