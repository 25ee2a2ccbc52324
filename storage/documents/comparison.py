"""comparison.json: reports of several runs side by side."""

from typing import Any, ClassVar

from storage.documents.document import Document, Part
from storage.documents.report import FigureRecord


class ComparedRun(Part):
    """One of the runs.

    Attributes:
        label: A, B, …; A is the one that the others are compared with.
        name: for people.
        created: of its report.
        report, samples, checkpoint: digests; the checkpoint's is None where its record is missing.
        mlflow_run_id: empty where it is not in MLflow.
        n_generated, n_real: number of volumes.
        warnings: of its report.
    """

    label: str
    name: str
    created: str
    report: str
    samples: str
    checkpoint: str | None
    mlflow_run_id: str
    n_generated: int
    n_real: int
    warnings: list[str]


class Difference(Part):
    """A figure of one run minus that of run A.

    Attributes:
        label: of the run.
        value: the difference; None where a run lacks the figure.
        interval: `{low, high, level, method, …}` of the difference, or None.
        better: whether the interval says that the run is better (true) or worse (false) than A; None where it says neither, or
            the figure is blind.
        note: what the difference was taken of, or why it has no interval.
    """

    label: str
    value: float | None
    interval: dict[str, Any] | None
    better: bool | None
    note: str


class ComparedFigure(Part):
    """One figure of all runs.

    Attributes:
        name: in the reports.
        title: in words.
        better: `lower`, `higher` or empty.
        values: by label; a run whose report lacks the figure is not there.
        floor: real volumes against real ones, of the first run that has it.
        blind: why the figure tells nothing, by label of the run.
        differences: of every run but A.
    """

    name: str
    title: str
    better: str
    values: dict[str, FigureRecord]
    floor: FigureRecord | None
    blind: dict[str, str]
    differences: list[Difference]

    @property
    def unit(self) -> str:
        """Of the values; empty for pure numbers."""
        return next((value.unit for value in self.values.values()), "")

    @property
    def is_equal(self) -> bool:
        """Whether all runs have one value, or none has any: figures of the real side mostly are."""
        return len({value.value for value in self.values.values()}) == 1 and len(self.values) > len(self.differences)


class Setting(Part):
    """A setting or an input that differs.

    Attributes:
        stage: whose.
        key: dotted.
        values: by label; a run without it is not there.
    """

    stage: str
    key: str
    values: dict[str, Any]


class Pairs(Part):
    """What a run shares with run A.

    Attributes:
        label: of the run.
        generated: volume ids (of A, of the run) drawn with the same seed.
        by: `seed`, or `index` where no seed is shared and volumes stand side by side by their place alone.
        real: real volumes that both reports were measured on.
        held_out: those of them that neither model was trained on.
    """

    label: str
    generated: list[tuple[str, str]]
    by: str
    real: list[str]
    held_out: list[str]


class Comparison(Document):
    """What a comparison found.

    Attributes:
        runs: A first.
        notes: sentences to read before the figures.
        figures: of all reports.
        settings: what differs in configuration, code and inputs.
        pairs: of every run but A.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "comparison.json"
    WHAT: ClassVar[str] = "comparison of runs"
    REMEDY: ClassVar[str] = "Compare the runs again."

    runs: list[ComparedRun]
    notes: list[str]
    figures: list[ComparedFigure]
    settings: list[Setting]
    pairs: list[Pairs]
