"""The record of a run: its configuration, the outcome of each stage, where the report is, and how it ended."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from flows.config import PipelineConfig
from storage.documents.run_record import RunDocument, StageRecord
from storage.files import naming_path, remove_leftovers, write_text_atomic
from storage.tracking import Tracker
from tasks.evaluate.stage import FILES, METRICS, REPORT
from tasks.run.recording import log_checkpoint
from tasks.run.stage import StageOutcome


def tracking_uri(workdir: Path) -> str:
    """`MLFLOW_TRACKING_URI` where set, else a local file beside the stages."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir / 'mlflow.db'}"


def new_run_directory(workdir: Path, config: PipelineConfig) -> Path:
    """`<workdir>/runs/<UTC time>/` with the resolved configuration, which `prdit run --config` repeats."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    directory = workdir / "runs" / stamp
    remove_leftovers(directory.parent)
    with naming_path(directory):
        directory.mkdir(parents=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text_atomic(directory / "config.yaml", text)
    return directory


class RunRecord:
    """What one run did, written once at its end, into its directory and as `runs/latest.json`.

    Args:
        directory: the run's directory.
        tracker: of the MLflow parent run.
        parent: our id of it.
    """

    def __init__(self, directory: Path, tracker: Tracker, parent: str) -> None:
        self.directory = directory
        self.gates: dict[str, Any] = {}
        self._tracker = tracker
        self._parent = parent
        self._began = datetime.now(UTC)

    def close(
        self, outcomes: dict[str, StageOutcome], tags: dict[str, str], error: BaseException | None
    ) -> dict[str, Any]:
        """Write the record, close the parent run with the figures that make runs comparable, and return the record.

        Waits while MLflow takes what the run recorded; the record has the run's id if MLflow has given one by then.
        """
        report = outcomes.get("evaluate")
        stopped = error is not None and not isinstance(error, Exception)  # TerminationSignal, KeyboardInterrupt
        what = f"cancelled ({type(error).__name__})" if stopped else f"{type(error).__name__}: {error}"
        message = None if error is None else what.encode(errors="backslashreplace").decode()  # names that are not UTF-8
        self._close_parent(outcomes, tags, error, killed=stopped)
        record = RunDocument(
            config_digest=tags["prdit.config_digest"],
            prefect_flow_run_id=os.environ.get("PREFECT__FLOW_RUN_ID"),
            mlflow_uri=self._tracker.uri,
            mlflow_run_id="",
            mlflow_experiment_id="",
            stages={name: StageRecord(**outcome.model_dump()) for name, outcome in outcomes.items()},
            seconds=round((datetime.now(UTC) - self._began).total_seconds(), 1),
            gates=self.gates,
            report=str(report.ref.path / REPORT) if report else None,
            metrics=str(report.ref.path / METRICS) if report else None,
            error=message,
        )
        known = self._with_ids(record)
        known.save_run(self.directory)  # before the wait, in which this process may be killed
        self._tracker.flush(stopped=stopped)
        if (last := self._with_ids(record)) != known:
            last.save_run(self.directory)
        return last.to_json()

    def _with_ids(self, record: RunDocument) -> RunDocument:
        ids = {
            "mlflow_run_id": self._tracker.mlflow_id(self._parent),
            "mlflow_experiment_id": self._tracker.experiment_id,
        }
        return record.model_copy(update=ids)

    def _close_parent(
        self, outcomes: dict[str, StageOutcome], tags: dict[str, str], error: BaseException | None, *, killed: bool
    ) -> None:
        """The parent run shows every stage's final figures under their own names, the model and the report."""
        tags = tags | {f"prdit.ref.{name}": outcome.ref.digest for name, outcome in outcomes.items()}
        if error is not None:
            tags["prdit.error"] = type(error).__name__  # its message may name files; record.json has it
        points: dict[str, Any] = {f"gate/{name}": value for name, value in self.gates.items()}
        seconds = {f"seconds/{name}": outcome.seconds for name, outcome in outcomes.items()}
        for outcome in outcomes.values():
            points = outcome.figures | points  # the figures of the last stage come first
        trained = [outcome.ref for outcome in outcomes.values() if outcome.ref.kind == "checkpoint"]
        if trained:
            log_checkpoint(self._tracker, self._parent, trained[-1])
        if report := outcomes.get("evaluate"):
            for name in FILES:
                self._tracker.log_file(self._parent, report.ref.path / name)
        self._tracker.log_points(self._parent, [{"step": 0} | points | seconds])
        self._tracker.set_tags(self._parent, tags)
        status = "KILLED" if killed else "FAILED" if error else "FINISHED"
        self._tracker.end_run(self._parent, status)
