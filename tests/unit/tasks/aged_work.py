"""A working folder whose stages are of any age."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Ref
from storage.documents.run_record import RunDocument, StageRecord
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage
from tests.factories import run_document

DAY_S = 86400.0


class Work:
    """A working folder whose stages are of any age."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(self, name: str, seed: int, days: float, size: int = 1000, **inputs: Ref) -> StageOutcome:
        """A finished stage that was last used some days ago; `size` bytes of result, a multiple of 4."""

        def body(run: StageRun) -> None:
            (run.directory / "result").write_bytes(seed.to_bytes(4, "big") * (size // 4))

        return self._run(name, seed, days, inputs, body)

    def unfinished(self, name: str, seed: int, days: float, **inputs: Ref) -> Path:
        """A stage whose body was stopped."""

        def body(run: StageRun) -> None:
            (run.directory / "half").write_bytes(bytes(500))
            raise RuntimeError("stopped")

        before = set((self.root / name).glob("*"))
        with pytest.raises(RuntimeError, match="stopped"):
            self._run(name, seed, days, inputs, body)
        (directory,) = set((self.root / name).glob("*")) - before
        age(directory, days)
        return directory

    def _run(self, name: str, seed: int, days: float, inputs: dict[str, Ref], body: Any) -> StageOutcome:
        kinds = {"train": "checkpoint", "sample": "samples", "evaluate": "report"}
        stage = Stage(name, kinds.get(name.partition("-")[0], "split"), recipe=1)  # type: ignore[arg-type]
        outcome = run_stage(
            stage, inputs=inputs, config={"seed": seed}, context=RunContext(workdir=self.root), body=body
        )
        age(Path(outcome.directory), days)
        return outcome

    def record(self, name: str, **outcomes: StageOutcome) -> Path:
        """The record of a run that ended."""
        stages = {stage: StageRecord(**outcome.model_dump()) for stage, outcome in outcomes.items()}
        run_document(stages=stages).save_run(self.root / "runs" / name)
        return self.root / "runs" / name / RunDocument.NAME


def age(directory: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    for path in (directory, *directory.rglob("*")):
        os.utime(path, (then, then))
