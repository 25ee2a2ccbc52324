"""What a rank is told by its environment."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.run.launchers.launcher import LauncherError

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
)  # ask ranks to save and end


@dataclass(frozen=True)
class Rank:
    """One of the processes that work together.

    Attributes:
        rank, world: its number among all, and how many there are.
        local_rank, local_world: the same on its node; `local_rank` is the number of its GPU.
        timeout_s: for collective operations.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    timeout_s: float


def parent_pid(environment: Mapping[str, str] = os.environ) -> int:
    """The node process that started this rank, also where it has ended meanwhile; without one, whoever is the parent now."""
    return int(environment.get("PRDIT_NODE_PID", os.getppid()))


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank that this process is.

    Raises: LauncherError: there are more or fewer ranks than were asked for.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, world, local_rank, local_world = (int(environment[name]) for name in names)
    fewest, most = (int(number) for number in environment["PRDIT_WORLD"].split("-"))
    if not fewest <= world <= most:
        asked = f"{most}" if fewest == most else f"{fewest} to {most}"
        raise LauncherError(
            f"the world has {world} rank{'s' if world > 1 else ''}, but {asked} were asked for (launcher.nodes, min_nodes and "
            "ranks_per_node).",
            "Look into the node processes' logs for a node that started another number of ranks, and start again.",
        )
    return Rank(rank, world, local_rank, local_world, float(environment["PRDIT_COLLECTIVE_TIMEOUT_S"]))
