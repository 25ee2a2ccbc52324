"""record.json: what one run of the pipeline did."""

from pathlib import Path
from typing import ClassVar

from storage.documents.document import Document, Part
from storage.refs import Ref


class StageRecord(Part):
    """Outcome of one stage.

    Attributes:
        ref: what it made.
        cached: whether that was found.
        seconds: wall time.
        mlflow_run_id: empty where untracked, or where MLflow did not answer.
        figures: by their names in MLflow.
        directory: where it worked.
    """

    ref: Ref
    cached: bool
    seconds: float
    mlflow_run_id: str
    figures: dict[str, float]
    directory: str


class RunDocument(Document):
    """What a run did and how it ended.

    Attributes:
        config_digest: of the resolved configuration.
        prefect_flow_run_id: None outside Prefect.
        mlflow_uri, mlflow_run_id, mlflow_experiment_id: the parent run; the ids are empty where MLflow did not answer.
        stages: in the order they ended.
        seconds: wall time.
        gates: figures that gates compared.
        report, metrics: paths of the report and its figures; None where the run did not get there.
        error: None for a run that completed.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "record.json"
    LATEST: ClassVar[str] = "latest.json"
    FOLDER: ClassVar[str] = "runs"  # of a working folder; in it each run has a folder, named by when it began
    WHAT: ClassVar[str] = "record of a run"
    REMEDY: ClassVar[str] = "Run the pipeline again."

    config_digest: str
    prefect_flow_run_id: str | None
    mlflow_uri: str
    mlflow_run_id: str
    mlflow_experiment_id: str
    stages: dict[str, StageRecord]
    seconds: float
    gates: dict[str, float | None]
    report: str | None
    metrics: str | None
    error: str | None

    @classmethod
    def paths(cls, workdir: Path) -> list[Path]:
        """The records of the runs of a working folder that ended, the newest run first."""
        return sorted((workdir / cls.FOLDER).glob(f"*/{cls.NAME}"), reverse=True)

    @classmethod
    def latest(cls, runs: Path) -> "RunDocument":
        """The run that ended last, of a folder of runs. Raises: as `read`."""
        return cls.read(runs / cls.LATEST)

    def save_run(self, run: Path) -> None:
        """Write it into the folder of a run, and beside that folder as the latest. Raises: UnwritableError."""
        self.save(run)
        self.write(run.parent / self.LATEST)
