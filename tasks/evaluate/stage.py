"""Stage evaluate: samples, snapshot and split -> metrics and report."""

from pathlib import Path
from typing import Any

from prdit_models.metrics import metric
from prdit_models.metrics.extractors.extractor import EXTRACTORS
from storage.artifacts import Ref
from storage.documents.report import Report
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.run import DATASET_CARD, MODEL_CARD, PAGE, RECIPE, check, evaluate
from tasks.run.progress import Advance
from tasks.run.runners import Runner
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage, with_owners

METRICS = Report.NAME
REPORT = PAGE
FILES = (METRICS, PAGE, MODEL_CARD, DATASET_CARD)


def _points(directory: Path) -> list[dict[str, Any]]:
    """The figures that runs are compared by, without the distances per figure of anatomy, which only the report shows."""
    figures = Report.load(directory).figures
    kept = {name: figure.value for name, figure in figures.items() if not _is_detail(name)}
    return [{"step": 0} | {name: value for name, value in kept.items() if value is not None}]


def _is_detail(name: str) -> bool:
    return name.startswith("anatomy_") and name.endswith("_distance")


EVALUATE = Stage("evaluate", "report", RECIPE, files=FILES, points=_points)


def evaluate_stage(
    samples: Ref,
    snapshot: Ref,
    split: Ref,
    config: EvaluateConfig,
    context: RunContext,
    progress: Advance,
    *,
    runner: Runner | None = None,
) -> StageOutcome:
    """Measure samples against a snapshot and write the report.

    Raises:
        InputError: fewer than two volumes on a side, before any work starts.
        RunnerError: what the runner needs is missing.
    """
    check(samples, snapshot, split)
    config = config.for_this_installation()
    if runner is not None:
        runner.check()

    def body(run: StageRun) -> None:
        evaluate(
            samples,
            snapshot,
            split,
            config,
            run.directory,
            progress,
            repeat_command=context.repeat_command,
            runner=runner,
        )

    return run_stage(
        EVALUATE,
        inputs={"samples": samples, "snapshot": snapshot, "split": split},
        config=with_owners(
            config.key_fields(),
            metric.METRICS.owners(*metric.METRICS.names()) | EXTRACTORS.owners(config.extractor.name),
        ),
        context=context,
        body=body,
    )
