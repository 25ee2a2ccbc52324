"""The flow `prdit`: ingest -> split -> the trainings of the recipe -> sample -> evaluate, each cached.

Every deployment is this flow with another last stage; stages that have run are found by their key.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.config import PipelineConfig, config_names, from_parameters, merge
from flows.hooks import ATTENDED, DAY_S, attended
from flows.parameters import columns, public_yaml, run_parameters
from flows.record import RunRecord, new_run_directory, tracking_uri
from flows.room import make_room
from flows.stages import (
    Inputs,
    Row,
    check_trainings,
    needed,
    real_volumes,
    rows,
    stage_names,
    training_row,
    walk,
)
from prdit_models.metrics.distances import MIN_VOLUMES
from storage.artifacts import Ref
from storage.errors import ConfigError, InputError, UserError, as_input_error
from storage.tracking import Tracker
from tasks.run.private import without_paths
from tasks.run.recording import log_snapshot
from tasks.run.stage import TRACKING, RunContext, StageOutcome, code_version, git_commit
from tasks.run.task import publish_picture, publish_table, run_as_task
from tasks.sample.conditions import expected_request
from tasks.train.gates import check_gates

NOTE = (
    "One run of the pipeline. **Metrics**: final figures of every stage (`<stage>/<figure>`), gates, seconds. "
    "**Child runs**: the stages, with their curves. **Artifacts**: `report.html`, `metrics.json`, the cards of "
    "model and data, `config.yaml`. **Logged models**: the last checkpoint."
)

logger = logging.getLogger("prdit.pipeline")


class GateError(UserError, RuntimeError):
    """The run is complete, but its trainings do not meet the configuration's gates."""


@dataclass(frozen=True)
class Purpose:
    """What a run is for, where it is for more than its chain, such as a retraining.

    Attributes:
        source: what MLflow shows as its source.
        initial: checkpoints with whose weights trainings begin, by the training's name.
        tags: of the run and its stages, further ones.
        judge: called with the run when its chain is complete, gates included; returns tags for the run. Gates that are not met are
            then its to judge, and no error.
    """

    source: str
    initial: Mapping[str, Ref] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    judge: "Callable[[PipelineRun], Mapping[str, str]] | None" = None


class PipelineRun:
    """One run of the chain: passes references from stage to stage and keeps the stages' outcomes.

    Args:
        config: the run's settings.
        context: where stages work and report.
        tracker: of the parent run; None where there is none.
        initial: checkpoints with whose weights trainings begin, by the training's name.

    Attributes:
        outcomes: of the stages that are done, by name.
        unmet: gates that the trainings do not meet, one sentence each.
    """

    def __init__(
        self,
        config: PipelineConfig,
        context: RunContext,
        tracker: Tracker | None = None,
        initial: Mapping[str, Ref] | None = None,
    ) -> None:
        self.config = config
        self.context = context
        self._tracker = tracker
        self._initial = initial
        self.outcomes: dict[str, StageOutcome] = {}
        self.unmet: list[str] = []

    def mlflow_id(self) -> str:
        """MLflow's id of the parent run; empty without one, or where the server does not answer."""
        run_id = self.context.parent_run_id
        return self._tracker.mlflow_id(run_id) if self._tracker and run_id else ""

    def through(self, last: str) -> None:
        """Run the chain up to and including a stage; without a source, on a snapshot of the store."""
        given = {} if self.config.source else {"ingest": real_volumes(self.config)}
        for snapshot in given.values():
            self._name_snapshot(snapshot)

        def run(row: Row, inputs: Inputs) -> StageOutcome:
            work = partial(row.run, inputs, self.context)
            if row.shows:
                publish = publish_table if row.shows == "table" else publish_picture
                work = partial(work, publish=partial(publish, row.name))
            hidden = self.config.sample.mask if row.name == "sample" else self.config.source
            return run_as_task(row.name, work, source=hidden)

        for name, outcome in walk(rows(self.config, self._initial), last, given, run):
            self.outcomes[name] = outcome
            if name == "ingest":
                self._name_snapshot(outcome.ref)

    def _name_snapshot(self, snapshot: Ref) -> None:
        """The snapshot as tag of every run and dataset of this one."""
        tags = {**self.context.tags, "prdit.snapshot": snapshot.digest}
        self.context = self.context.model_copy(update={"tags": tags})
        if self._tracker and self.context.parent_run_id:
            log_snapshot(self._tracker, self.context.parent_run_id, snapshot, "training")


def check_sampling(config: PipelineConfig, *, evaluated: bool = True) -> None:
    """Refuse what could not be sampled, or not be evaluated then, before anything is trained for it.

    Raises: InputError: see the message.
    """
    name, training = list(config.trainings.items())[-1]
    info, sample = config.checkpoints()[name], config.sample
    with as_input_error(f"The samples would be of training {name!r}. "):
        wanted = expected_request(info, sample)
    if evaluated and sample.num_volumes < MIN_VOLUMES:
        raise InputError(
            f"sample.num_volumes is {sample.num_volumes}; a distance between sets needs at least {MIN_VOLUMES}. Sample more, or "
            "run up to stage sample."
        )
    with as_input_error(f"The samples would be of training {name!r}. "):
        info.of_family.check(info.model, info.process, wanted)
    if wanted.conditions is not None and sample.guidance_scale != 1.0 and training.label_dropout == 0.0:
        raise InputError(
            f"sample.guidance_scale is {sample.guidance_scale} and recipe.{name}.label_dropout 0: the model would never see a "
            "volume without label and conditions, which guidance compares with. Use a label_dropout such as 0.1."
        )
    if sample.mask is not None and not Path(sample.mask).exists():
        raise InputError("There is nothing at the path of sample.mask. Correct it before anything is trained.")


def run_through(config: PipelineConfig, last: str, purpose: Purpose | None = None) -> dict[str, Any]:
    """Run the chain up to a stage under one MLflow parent run; write and return the run's record (`runs/latest.json`).

    Args:
        config: of the run.
        last: name of the last stage.
        purpose: what else it is for; None: nothing.
    Raises:
        ConfigError: there is nothing to do.
        RunnerError, LauncherError: what the runner or the launcher needs is missing.
        InputError: the batch of a training cannot be shared by the launcher's ranks.
        GateError: the trainings do not meet the configuration's gates (everything else is done and recorded).
    """
    if last == "ingest" and config.source is None:
        raise ConfigError("source is not given: name the folder with the DICOM series that ingest is to read")
    stages = needed(rows(config), last, {})
    if {"sample", "evaluate"} & {*stages} or config.source:
        config.runner.check()
    check_trainings(config, stages)
    if last in ("sample", "evaluate"):
        check_sampling(config, evaluated=last == "evaluate")
    make_room(config)
    workdir = Path(config.workdir).resolve()
    directory = new_run_directory(workdir, config)
    outbox, shown = workdir / TRACKING, columns(config)
    tracker = Tracker(tracking_uri(workdir), config.experiment, outbox, commit=git_commit(), columns=shown)
    purpose = purpose or Purpose("prdit/full-pipeline" if last == "evaluate" else f"prdit/{last}")
    tags = {"prdit.code_version": code_version(), **config.tags(), **purpose.tags}
    if flow_run.get_id():
        tags["prefect.flow_run_id"] = str(flow_run.get_id())
    run_name = flow_run.get_name() or directory.name
    parameters = run_parameters(config)
    parent = tracker.start_run(run_name, parent=None, source=purpose.source, tags=tags, params=parameters, note=NOTE)
    tracker.log_text(parent, public_yaml(config), "config.yaml")
    context = RunContext(
        workdir=workdir,
        tracking_uri=tracker.uri,
        experiment=config.experiment,
        parent_run_id=parent,
        tags=tags,
        parameters=parameters,
        columns=shown,
        repeat_command=None if purpose.initial else f"prdit run --config runs/{directory.name}/config.yaml",
    )
    run = PipelineRun(config, context, tracker, purpose.initial)
    record = RunRecord(directory, tracker, parent)
    try:
        with without_paths(config.source):
            run.through(last)
        made = {
            name: run.outcomes[training_row(name)].ref
            for name in config.trainings
            if training_row(name) in run.outcomes
        }
        starts = {name: training.start for name, training in config.trainings.items()}
        record.gates, run.unmet = check_gates(config.gates, made, starts)
        judged = purpose.judge(run) if purpose.judge else {}
        if run.unmet and not purpose.judge:
            raise GateError("; ".join(run.unmet))
    except BaseException as error:
        closed = record.close(run.outcomes, run.context.tags, error)
        logger.error("run %s ended: %s", run_name, closed["error"])
        raise
    return record.close(run.outcomes, {**run.context.tags, **judged}, None)


Choice = Annotated[
    str, Field(json_schema_extra={"enum": config_names()})
]  # the form's list; in process also a YAML file
StageChoice = Annotated[str, Field(json_schema_extra={"enum": list(stage_names())})]


@flow(name="prdit", timeout_seconds=30 * DAY_S, **ATTENDED)
def pipeline(
    configuration: Choice = "demo",
    source: str = "",
    store: str = "",
    overrides: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
    stage: StageChoice = "evaluate",
) -> dict[str, Any]:
    """Folder of scans to report: ingest, split, the trainings of the recipe, sampling, evaluation.

    Args:
        configuration: Named configuration to run. With the fields below unchanged, exactly this configuration runs.
        source: Folder with scans (DICOM, NIfTI), as the worker sees it; read-only. Empty: work on the store's newest snapshot.
        store: Folder of the volume store. Empty: the configuration's (.prdit/store).
        overrides: Settings that differ from the configuration, nested as in flows/configs/*.yaml, for example
            {"recipe": {"local": {"steps": 500}}, "workdir": "/data/work"}. An unknown key is an error.
        stage: Last stage of the run; those before it run first. A training that is disabled by default is enabled by naming it.
    """
    with attended():
        config = from_parameters(configuration, source, store, overrides)
        for name, training in config.recipe.items():
            if training_row(name) == stage and not training.enabled:
                enabled = merge(overrides, {"recipe": {name: {"enabled": True}}})
                config = from_parameters(configuration, source, store, enabled)
        return run_through(config, stage)
