"""The flow `prdit`: ingest -> split -> train local -> train global (-> train refiner) -> sample -> evaluate, each cached.

Every deployment is an entry point here that goes through the chain up to its stage; stages that have run are found by their key.
"""

import logging
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.config import PipelineConfig
from flows.record import RunRecord, new_run_directory, tracking_uri
from storage.artifacts import Ref
from tasks.evaluate.task import evaluate_task
from tasks.ingest.stage import store_ref
from tasks.ingest.task import ingest_task
from tasks.sample.task import sample_task
from tasks.split.task import split_task
from tasks.stage import RunContext, StageOutcome, code_version
from tasks.train.gates import check_gates, refiner_figures
from tasks.train.task import train_global_task, train_local_task, train_refiner_task

STAGES = ("ingest", "split", "train-local", "train-global", "train-refiner", "sample", "evaluate")

logger = logging.getLogger("prdit.pipeline")


class GateError(RuntimeError):
    """The run is complete, but its trainings do not meet the configuration's gates."""


class PipelineRun:
    """One run of the chain: hands references from stage to stage and keeps the record of what happened.

    Args:
        config: the run's settings.
        context: where stages work and report.
    """

    def __init__(self, config: PipelineConfig, context: RunContext) -> None:
        self.config = config
        self.context = context
        self.outcomes: dict[str, StageOutcome] = {}

    def through(self, last: str) -> None:
        """Run the chain up to and including a stage."""
        for name in STAGES:
            outcome = getattr(self, "_" + name.replace("-", "_"))()
            if outcome is not None:
                self.outcomes[name] = outcome
            if name == "ingest":
                tags = {**self.context.tags, "prdit.store_fingerprint": self._store.digest}
                self.context = self.context.model_copy(update={"tags": tags})
            if name == last:
                return

    def _ingest(self) -> StageOutcome | None:
        config = self.config
        if config.source is None:
            return None
        return _outcome(ingest_task, config.source, config.store, config.ingest, self.context)

    def _split(self) -> StageOutcome:
        return _outcome(split_task, self._store, self.config.split, self.context)

    def _train_local(self) -> StageOutcome:
        return _outcome(train_local_task, self._store, self._ref("split"), self.config.train_local, self.context)

    def _train_global(self) -> StageOutcome:
        split, local = self._ref("split"), self._ref("train-local")
        return _outcome(train_global_task, self._store, split, self.config.train_global, self.context, local)

    def _train_refiner(self) -> StageOutcome | None:
        config = self.config.train_refiner
        if not config.enabled:
            return None
        split, base = self._ref("split"), self._ref("train-global")
        return _outcome(train_refiner_task, self._store, split, config, self.context, base)

    def _sample(self) -> StageOutcome:
        last = "train-refiner" if "train-refiner" in self.outcomes else "train-global"
        return _outcome(sample_task, self._ref(last), self.config.sample, self.context)

    def _evaluate(self) -> StageOutcome:
        samples, split = self._ref("sample"), self._ref("split")
        return _outcome(evaluate_task, samples, self._store, split, self.config.evaluate, self.context)

    @property
    def _store(self) -> Ref:
        """The store at its fingerprint after ingest (as it is now, where there was no source to ingest)."""
        return (
            self._ref("ingest") if "ingest" in self.outcomes else store_ref(Path(self.config.store), self.config.ingest)
        )

    def _ref(self, stage: str) -> Ref:
        return self.outcomes[stage].ref


def _outcome(stage_task: Any, *arguments: Any) -> StageOutcome:
    """Run a task whose return value is its final state, and give what the state carries (or raise what it failed with)."""
    outcome: StageOutcome = stage_task(*arguments, return_state=True).result()
    return outcome


def check_labels(config: PipelineConfig) -> None:
    """Refuse a label that sampling could not use, before anything is trained for it.

    Raises: ValueError: see the message.
    """
    if config.sample.label is None:
        return
    said = f"sample.label is {config.sample.label!r}"
    if config.train_refiner.enabled:
        raise ValueError(f"{said} with train_refiner.enabled; labels act in stage 2 only. Leave one of them out.")
    if config.train_global.label_column is None:
        raise ValueError(
            f"{said}, but train_global.label_column is not set: the model would know no labels. Name the column."
        )
    if config.sample.guidance_scale != 1.0 and config.train_global.label_dropout == 0.0:
        raise ValueError(
            f"sample.guidance_scale is {config.sample.guidance_scale} and train_global.label_dropout 0: the model would never "
            "see a volume without label, which guidance compares with. Use a label_dropout such as 0.1."
        )


def run_through(config: PipelineConfig, last: str) -> dict[str, Any]:
    """Run the chain up to a stage under one MLflow parent run; write and return the run's record (`runs/latest.json`).

    Raises: GateError: the trainings do not meet the configuration's gates (everything else is done and recorded).
    """
    from storage.tracking import Tracker

    if last in ("sample", "evaluate"):
        check_labels(config)
    workdir = Path(config.workdir).resolve()
    directory = new_run_directory(workdir, config)
    tracker = Tracker(tracking_uri(workdir), config.experiment)
    tags = {"prdit.code_version": code_version(), "prdit.config": config.base or "custom"}
    if flow_run.get_id():
        tags["prefect.flow_run_id"] = str(flow_run.get_id())
    run_name = flow_run.get_name() or directory.name
    parent = tracker.start_run(
        run_name, parent=None, tags=tags, params=config.model_dump(mode="json", exclude={"base"})
    )
    context = RunContext(
        workdir=workdir,
        tracking_uri=tracker.uri,
        experiment=config.experiment,
        parent_run_id=parent or None,
        tags=tags,
        repeat_command=f"prdit run --config {directory / 'config.yaml'}",
    )
    run = PipelineRun(config, context)
    record = RunRecord(directory, tracker, parent)
    try:
        run.through(last)
        if "train-global" in run.outcomes:
            figures, unmet = check_gates(
                config.gates, run.outcomes["train-local"].ref, run.outcomes["train-global"].ref
            )
            if "train-refiner" in run.outcomes:
                figures |= refiner_figures(run.outcomes["train-refiner"].ref)
            record.gates = figures
            if unmet:
                raise GateError("; ".join(unmet))
    except BaseException as error:
        closed = record.close(run.outcomes, run.context.tags, error)
        logger.error("run %s ended: %s", run_name, closed["error"])
        raise
    return record.close(run.outcomes, run.context.tags, None)


@flow(name="prdit")
def full_pipeline(config: PipelineConfig) -> dict[str, Any]:
    """DICOM folder -> store -> two-stage PRDiT -> samples -> report."""
    return run_through(config, "evaluate")


@flow(name="prdit")
def through_ingest(config: PipelineConfig) -> dict[str, Any]:
    """DICOM folder -> store."""
    return run_through(config, "ingest")


@flow(name="prdit")
def through_split(config: PipelineConfig) -> dict[str, Any]:
    """Up to the roles by patient."""
    return run_through(config, "split")


@flow(name="prdit")
def through_train_local(config: PipelineConfig) -> dict[str, Any]:
    """Up to the stage-1 checkpoint."""
    return run_through(config, "train-local")


@flow(name="prdit")
def through_train_global(config: PipelineConfig) -> dict[str, Any]:
    """Up to the stage-2 checkpoint."""
    return run_through(config, "train-global")


@flow(name="prdit")
def through_train_refiner(config: PipelineConfig) -> dict[str, Any]:
    """Up to the stage-3 checkpoint; the stage need not be enabled for this."""
    refiner = config.train_refiner.model_copy(update={"enabled": True})
    enabled = PipelineConfig.model_validate(config.model_dump() | {"base": None, "train_refiner": refiner.model_dump()})
    return run_through(enabled, "train-refiner")


@flow(name="prdit")
def through_sample(config: PipelineConfig) -> dict[str, Any]:
    """Up to sampled volumes."""
    return run_through(config, "sample")


@flow(name="prdit")
def through_evaluate(config: PipelineConfig) -> dict[str, Any]:
    """Up to metrics and report: the whole chain, by the name of its last stage."""
    return run_through(config, "evaluate")
