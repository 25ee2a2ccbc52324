"""Jobs of toy ranks, and what they leave."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.run.launchers.launcher import Job
from tests.processes import alive

TOY = "tests.unit.tasks.launchers.toy"


@dataclass(frozen=True)
class Toys:
    """A folder in which toy ranks work.

    Attributes:
        root: they tell there what happens.
    """

    root: Path

    @property
    def work(self) -> Path:
        """The job's folder."""
        (self.root / "work").mkdir(exist_ok=True)
        return self.root / "work"

    def job(self, steps: int, talk: int = 0, token: int = 1) -> Job:
        return Job("toy", TOY, (str(self.root), str(steps), str(talk)), self.work, token)

    def step(self) -> int:
        path = self.root / "step"
        return int(path.read_text()) if path.exists() else 0

    def started(self) -> dict[int, dict[str, Any]]:
        """What each rank that ever started was told, by process id, in order of their start."""
        found = {}
        for path in self.root.glob("started-*"):
            with suppress(json.JSONDecodeError):  # being written
                found[int(path.name.split("-")[2])] = json.loads(path.read_text())
        return dict(sorted(found.items(), key=lambda item: item[1]["at"]))

    def pids(self) -> set[int]:
        """Ranks and node processes that run."""
        known = {pid for rank, shown in self.started().items() for pid in (rank, shown["parent"])}
        return {pid for pid in known if alive(pid)}

    def marks(self, kind: str) -> dict[str, Any]:
        """Content of `saved-*` or `done-*` by name."""
        found = sorted(self.root.glob(f"{kind}-*"))
        return {path.name: json.loads(path.read_text()) for path in found if path.suffix != ".new"}

    def log(self, node: int = 0) -> str:
        return (self.work / f"node-{node}.log").read_text()
