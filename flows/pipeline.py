"""The flow `prdit`: ingest -> split -> train local -> train global (-> train refiner) -> sample -> evaluate, each cached.

Every deployment is an entry point here that goes through the chain up to its stage; stages that have run are found by their key.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

from prefect import Flow, flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.config import STAGES, ConfigError, PipelineConfig, config_names, from_parameters, merge
from flows.parameters import public_yaml, run_parameters
from flows.record import RunRecord, new_run_directory, tracking_uri
from storage.artifacts import Ref
from tasks.evaluate.task import evaluate_task
from tasks.ingest.stage import store_ref
from tasks.ingest.task import ingest_task
from tasks.recording import COLUMNS, record_store
from tasks.sample.task import sample_task
from tasks.split.task import split_task
from tasks.stage import RunContext, StageOutcome, code_version, git_commit
from tasks.train.gates import check_gates, refiner_figures
from tasks.train.task import train_global_task, train_local_task, train_refiner_task

NOTE = (
    "One run of the pipeline. **Metrics**: final figures of every stage (`<stage>/<figure>`), gates, seconds. "
    "**Child runs**: the stages, with their curves. **Artifacts**: `report.html`, `metrics.json`, `config.yaml`. "
    "**Logged models**: the last checkpoint."
)

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
        names = self.config.stages(last)
        for name in STAGES[: STAGES.index(last) + 1]:
            if name in names:
                self.outcomes[name] = getattr(self, "_" + name.replace("-", "_"))()
            if name == "ingest":
                tags = {**self.context.tags, "prdit.store_fingerprint": self._store.digest}
                self.context = self.context.model_copy(update={"tags": tags})
                record_store(self.context, self.context.parent_run_id, self._store, "training")

    def _ingest(self) -> StageOutcome:
        config = self.config
        return _outcome(ingest_task, config.source, config.store, config.ingest, self.context)

    def _split(self) -> StageOutcome:
        return _outcome(split_task, self._store, self.config.split, self.context)

    def _train_local(self) -> StageOutcome:
        return _outcome(train_local_task, self._store, self._ref("split"), self.config.train_local, self.context)

    def _train_global(self) -> StageOutcome:
        split, local = self._ref("split"), self._ref("train-local")
        return _outcome(train_global_task, self._store, split, self.config.train_global, self.context, local)

    def _train_refiner(self) -> StageOutcome:
        config = self.config.train_refiner
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

    Raises:
        ConfigError: there is nothing to do.
        GateError: the trainings do not meet the configuration's gates (everything else is done and recorded).
    """
    from storage.tracking import Tracker

    if last == "ingest" and config.source is None:
        raise ConfigError("source is not given: name the folder with the DICOM series that ingest is to read")
    if last in ("sample", "evaluate"):
        check_labels(config)
    workdir = Path(config.workdir).resolve()
    directory = new_run_directory(workdir, config)
    tracker = Tracker(tracking_uri(workdir), config.experiment, commit=git_commit(), columns=COLUMNS)
    tags = {"prdit.code_version": code_version(), **config.tags()}
    if flow_run.get_id():
        tags["prefect.flow_run_id"] = str(flow_run.get_id())
    run_name = flow_run.get_name() or directory.name
    parameters = run_parameters(config)
    source = "prdit/full-pipeline" if last == "evaluate" else f"prdit/{last}"
    parent = tracker.start_run(run_name, parent=None, source=source, tags=tags, params=parameters, note=NOTE)
    tracker.log_text(parent, public_yaml(config), "config.yaml")
    context = RunContext(
        workdir=workdir,
        tracking_uri=tracker.uri,
        experiment=config.experiment,
        parent_run_id=parent or None,
        tags=tags,
        parameters=parameters,
        repeat_command=f"prdit run --config runs/{directory.name}/config.yaml",
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


Choice = Annotated[
    str, Field(json_schema_extra={"enum": config_names()})
]  # the form's list; in process also a YAML file
# Prefect shows this text beside the fields of its form.
_PARAMETERS = """

    Args:
        configuration: Named configuration to run. Left as it is below, exactly this configuration runs.
        source: Folder with DICOM series, as the worker sees it; opened read-only. Empty: no ingest, the store is used as it is.
        store: Folder of the volume store. Empty: the configuration's (.prdit/store).
        overrides: Settings that differ from the configuration, nested as in flows/configs/*.yaml, for example
            {"train_local": {"steps": 500}, "workdir": "/data/work"}. An unknown key is an error.
"""


def _entry_point(last: str, what: str) -> Flow[..., dict[str, Any]]:
    """A flow through the chain up to a stage, with the parameters that a person fills in."""

    def through(
        configuration: Choice = "demo",
        source: str = "",
        store: str = "",
        overrides: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
    ) -> dict[str, Any]:
        wanted = merge(overrides, {"train_refiner": {"enabled": True}}) if last == "train-refiner" else overrides
        return run_through(from_parameters(configuration, source, store, wanted), last)

    through.__doc__ = what + _PARAMETERS
    return flow(name="prdit", description=what)(through)


full_pipeline = _entry_point("evaluate", "DICOM folder to report: ingest, split, trainings, sampling, evaluation.")
through_ingest = _entry_point("ingest", "DICOM folder to volume store: a verdict for every series.")
through_split = _entry_point("split", "Up to the split: a role for every patient.")
through_train_local = _entry_point("train-local", "Up to the stage-1 checkpoint: the local denoiser.")
through_train_global = _entry_point("train-global", "Up to the stage-2 checkpoint: the global refiner.")
through_train_refiner = _entry_point("train-refiner", "Up to the stage-3 checkpoint, which this enables.")
through_sample = _entry_point("sample", "Up to sampled volumes.")
through_evaluate = _entry_point("evaluate", "Up to metrics and report: the whole chain, by the name of its last stage.")
