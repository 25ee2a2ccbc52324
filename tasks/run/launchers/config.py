"""Configuration of where a training runs: launcher, nodes, ranks."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from tasks.run.config import StageConfig
from tasks.run.launchers.launcher import LAUNCHERS
from tasks.run.settings import settings_of


class LauncherConfig(StageConfig):
    """Where and on how many devices a training runs. None of it enters a cache key."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset(
        {"name", "nodes", "min_nodes", "ranks_per_node", "max_restarts", "timeout_s", "settings"}
    )

    name: str = Field("local", description="launcher: local, dask, slurm, or another package's")
    nodes: int = Field(1, ge=1, description="hosts that take part")
    min_nodes: int | None = Field(
        None, ge=1, description="hosts with which it goes on when others are lost (elastic); default: all of them"
    )
    ranks_per_node: int | None = Field(
        None, ge=1, description="processes on each node, one per GPU; default: the GPUs of a node, 1 without"
    )
    max_restarts: int = Field(
        3, ge=0, description="crashes of ranks after which a launch ends; lost nodes do not count"
    )
    timeout_s: float = Field(
        60.0,
        ge=1,
        description="longest wait of a rank for another; one that waits longer ends, and the group starts again",
    )
    settings: Any = Field(None, description="settings of the launcher", validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:
        """Settings become what the launcher defines."""
        if not isinstance(values, dict) or not isinstance(name := values.get("name", "local"), str):
            return values
        return {**values, "settings": settings_of(LAUNCHERS[name].settings, values.get("settings") or {}, "settings")}

    @model_validator(mode="after")
    def _fits(self) -> "LauncherConfig":
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes is {self.min_nodes}, more than nodes ({self.nodes})")
        if self.name == "local" and self.nodes > 1:
            raise ValueError(
                f"nodes is {self.nodes}, but the launcher local uses this machine alone. Name another launcher (dask, slurm), or "
                "set ranks_per_node to use several GPUs."
            )
        return self

    @property
    def ranks(self) -> int:
        """Processes on each node.

        Raises: LauncherError: they are as many as the GPUs of a node, which cannot be asked.
        """
        return self.ranks_per_node or LAUNCHERS[self.name].ranks(self)

    @property
    def fewest_nodes(self) -> int:
        """Hosts with which it goes on."""
        return self.min_nodes or self.nodes

    @property
    def elastic(self) -> bool:
        """Whether it may go on with fewer hosts than it asks for."""
        return self.fewest_nodes < self.nodes

    @property
    def world(self) -> tuple[int, int]:
        """Fewest and most ranks that may take part."""
        return self.fewest_nodes * self.ranks, self.nodes * self.ranks
