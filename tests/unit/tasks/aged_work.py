"""A working folder whose stages are of any age."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Ref
from storage.documents.run_record import RunDocument, StageRecord
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage

DAY_S = 86400.0


class Work:
    """A working folder whose stages are of any age."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(self, name: str, seed: int, days: float, **inputs: Ref) -> StageOutcome:
        """A finished stage that was last used some days ago; 1000 bytes of result."""

        def body(run: StageRun) -> None:
            (run.directory / "result").write_bytes(bytes([seed]) * 1000)

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
        document = RunDocument(
            config_digest="sha256:1",
            prefect_flow_run_id=None,
            mlflow_uri="",
            mlflow_run_id="",
            mlflow_experiment_id="",
            stages={stage: StageRecord(**outcome.model_dump()) for stage, outcome in outcomes.items()},
            seconds=1.0,
            gates={},
            report=None,
            metrics=None,
            error=None,
        )
        document.save_run(self.root / "runs" / name)
        return self.root / "runs" / name / RunDocument.NAME


def age(directory: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    for path in (directory, *directory.rglob("*")):
        os.utime(path, (then, then))
