"""What node processes are told, and the names of the files they share with their launcher.

Imports nothing heavy: a node process starts to watch its launcher before it imports anything else.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.processes import HEARTBEAT

BEAT = HEARTBEAT  # touched by the launcher
STOP = "stop"  # made by whoever wants the job to stop
ORDER = "order"  # this module's JSON
STORE = "store"  # address of the rendezvous store, by node 0


def numbered(kind: str, token: int) -> str:
    """Name of a launch's file of a kind."""
    return f"{kind}-{token}"


@dataclass(frozen=True)
class Order:
    """A job for node processes.

    Attributes:
        name, module, arguments, folder, token: of the job.
        nodes, min_nodes: node processes that may and must take part.
        ranks: processes on each node.
        max_restarts, timeout_s: of the configuration.
        beat_s: a heartbeat that did not change for so long means that the launcher is gone.
        stop_s: time for ranks to save and end after SIGTERM, before they are killed.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    folder: str
    token: int
    nodes: int
    min_nodes: int
    ranks: int
    max_restarts: int
    timeout_s: float
    beat_s: float = 60.0
    stop_s: float = 65.0

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def read(path: Path) -> "Order":
        """From a file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return Order(**values | {"arguments": tuple(values["arguments"])})
