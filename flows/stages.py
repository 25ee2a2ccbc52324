"""The table of stages: what runs after what. The flow, the deployments, the command line and the cache read it."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from flows.config import PipelineConfig, config_names, load_named
from storage.artifacts import Ref
from storage.errors import ConfigError, InputError
from storage.places import as_place
from storage.snapshots import find, newest
from storage.volume_store import VolumeStore
from tasks.evaluate.stage import evaluate_stage
from tasks.ingest.stage import ingest_stage
from tasks.model.checkpoint import CheckpointInfo
from tasks.run.config import StageConfig
from tasks.run.launchers.launcher import LAUNCHERS
from tasks.run.progress import Advance
from tasks.run.stage import RunContext, StageOutcome
from tasks.sample.conditions import asked_grid, request
from tasks.sample.mask import check_mask_volume
from tasks.sample.stage import sample_stage
from tasks.split.stage import split_stage
from tasks.train.check import columns_of
from tasks.train.stage import check_shares, train

Inputs = Mapping[str, Ref]
Publish = Callable[..., None]
logger = logging.getLogger("prdit.stages")


@dataclass(frozen=True)
class Row:
    """One stage of a configuration.

    Attributes:
        name: of the stage.
        what: what a run up to it makes, in a few words.
        inputs: name of the stage that makes each input, by the input's role.
        config: its settings.
        beside: inputs that no stage of the run makes, by role.
        check: called with snapshot and split, for what can be refused before the stages that it takes inputs from are run.
        run: (inputs by role, context, progress) -> outcome.
        shows: what the argument `publish`, which `run` then takes too, is given: rows of a table, or pictures with a caption.
    """

    name: str
    what: str
    inputs: dict[str, str]
    config: StageConfig
    run: Callable[..., StageOutcome]
    shows: Literal["", "table", "picture"] = ""
    beside: Mapping[str, Ref] = field(default_factory=dict)
    check: Callable[[Ref, Ref], object] | None = None


def rows(config: PipelineConfig, initial: Mapping[str, Ref] | None = None) -> dict[str, Row]:
    """The stages of a configuration by name, in order.

    Args:
        config: the configuration.
        initial: checkpoints with whose weights trainings begin, by the training's name; the others begin with fresh ones.
    """
    trainings, initial = list(config.trainings), initial or {}
    real = {"snapshot": "ingest", "split": "split"}
    found = [
        Row(
            "ingest",
            "volume store: a verdict for every series",
            {},
            config.ingest,
            partial(_ingest, config),
            shows="table",
        ),
        Row("split", "split: a role for every patient", {"snapshot": "ingest"}, config.split, partial(_split, config)),
    ]
    for name, training in config.trainings.items():
        start = {"start": training_row(training.start)} if training.start else {}
        what = f"checkpoint of training {name!r}"
        beside = {"initial": initial[name]} if name in initial else {}
        run = partial(_train, config, name)
        check = partial(_check_columns, config, name, initial)
        found.append(Row(training_row(name), what, real | start, training, run, beside=beside, check=check))
    found += [
        Row(
            "sample",
            "sampled volumes",
            {"checkpoint": training_row(trainings[-1])},
            config.sample,
            partial(_sample, config),
            shows="picture",
            check=partial(_check_asked, config, initial),
        ),
        Row(
            "evaluate",
            "metrics and report",
            {"samples": "sample", **real},
            config.evaluate,
            partial(_evaluate, config),
        ),
    ]
    return {row.name: row for row in found}


def training_row(name: str) -> str:
    """Name of the stage of a training."""
    return f"train-{name}"


def stage_names() -> tuple[str, ...]:
    """Every stage that some named configuration has, its trainings enabled; in the order of the pipeline.

    A configuration that cannot be read has none, with a warning: it must not keep the others from being run.
    """
    trainings: dict[str, None] = {}
    for each in config_names():
        try:
            recipe = load_named(each).get("recipe")
        except ConfigError as error:
            logger.warning("the configuration %r is left out: %s", each, error)
            continue
        trainings |= dict.fromkeys(training_row(str(name)) for name in recipe or ())
    return ("ingest", "split", *trainings, "sample", "evaluate")


def needed(table: Mapping[str, Row], last: str, given: Mapping[str, Ref]) -> tuple[str, ...]:
    """Names of the stages that must run for `last`, in order; stages whose reference is given do not run.

    Raises: ConfigError: there is no such stage.
    """
    if last not in table:
        raise ConfigError(f"stage {last!r} is not a stage of this configuration, which has {', '.join(table)}")
    wanted, open_ = set(), [last]
    while open_:
        name = open_.pop()
        if name not in wanted and name not in given:
            wanted.add(name)
            open_ += table[name].inputs.values()
    return tuple(name for name in table if name in wanted)


def walk(
    table: Mapping[str, Row], last: str, given: Mapping[str, Ref], run: Callable[[Row, Inputs], StageOutcome]
) -> Iterator[tuple[str, StageOutcome]]:
    """Run the stages that `last` needs, one after the other, and yield each one's name and outcome.

    What can be checked is, as soon as snapshot and split are there, but for a stage whose other inputs are given.

    Args:
        table: the stages.
        last: name of the last one.
        given: references that exist already, by stage name.
        run: runs one stage with its inputs by role.
    Raises: InputError: a later stage cannot work on this snapshot and split.
    """
    refs, stages = dict(given), needed(table, last, given)
    real = {"ingest", "split"}
    checks = [
        row.check
        for name in stages
        if (row := table[name]).check and not ({*row.inputs.values()} - real) & given.keys()
    ]
    for name in stages:
        if checks and real <= refs.keys():
            for check in checks:
                check(refs["ingest"], refs["split"])
            checks = []
        row = table[name]
        outcome = run(row, {role: refs[stage] for role, stage in row.inputs.items()} | dict(row.beside))
        refs[name] = outcome.ref
        yield name, outcome


def check_trainings(config: PipelineConfig, stages: Collection[str]) -> None:
    """Refuse trainings that the launcher cannot run, before scans are read and other trainings run for them.

    Args:
        config: of the run.
        stages: of the run; only their trainings count.
    Raises: InputError, LauncherError: see the message.
    """
    names = [name for name in config.trainings if training_row(name) in stages]
    for name in names:
        try:
            check_shares(config.recipe[name], config.launcher)
        except InputError as error:
            raise InputError(f"recipe.{name}: {error}") from error
    if names:
        LAUNCHERS[config.launcher.name].check(config.launcher)


def real_volumes(config: PipelineConfig, *, any_grid: bool = False) -> Ref:
    """The snapshot that a run without a source works on: the configured one, else the newest of its store.

    Args:
        config: of the run.
        any_grid: whether the store may have another grid than the configuration; what is done with it depends on a checkpoint's.
    Raises: StorageError: there is no such snapshot, or the store has another grid than the configuration.
    """
    store = VolumeStore.open(as_place(config.store), None if any_grid else config.ingest.grid)
    return newest(store) if config.snapshot is None else find(store, config.snapshot)


def _ingest(
    config: PipelineConfig, inputs: Inputs, context: RunContext, progress: Advance, publish: Publish | None = None
) -> StageOutcome:
    if config.source is None:
        raise ConfigError("source is not given: name the folder with the DICOM series that ingest is to read")
    return ingest_stage(
        as_place(config.source),
        as_place(config.store),
        config.ingest,
        context,
        progress,
        runner=config.runner,
        publish=publish,
    )


def _split(config: PipelineConfig, inputs: Inputs, context: RunContext, progress: Advance) -> StageOutcome:
    return split_stage(inputs["snapshot"], config.split, context)


def _train(config: PipelineConfig, name: str, inputs: Inputs, context: RunContext, progress: Advance) -> StageOutcome:
    return train(name, dict(inputs), config.recipe[name], context, progress, config.launcher)


def _check_columns(
    config: PipelineConfig, name: str, initial: Mapping[str, Ref], snapshot: Ref, split: Ref
) -> CheckpointInfo:
    """What a training will make, with the labels and conditions that the training volumes have."""
    info = config.checkpoints()[name]
    try:
        labels, conditions = columns_of(snapshot, split, config.recipe[name], info.view, initial.get(name))
    except InputError as error:
        raise InputError(f"recipe.{name}: {error}") from error
    return replace(info, label_values=labels, conditions=conditions)


def _check_asked(config: PipelineConfig, initial: Mapping[str, Ref], snapshot: Ref, split: Ref) -> None:
    if config.sample.label is None and not config.sample.conditions and config.sample.mask_volume is None:
        return
    info = _check_columns(config, list(config.trainings)[-1], initial, snapshot, split)
    request(asked_grid(info, config.sample), config.sample)
    if config.sample.mask_volume is not None:
        check_mask_volume(snapshot, config.sample.mask_volume)


def _sample(
    config: PipelineConfig, inputs: Inputs, context: RunContext, progress: Advance, publish: Publish | None = None
) -> StageOutcome:
    return sample_stage(inputs["checkpoint"], config.sample, context, progress, runner=config.runner, publish=publish)


def _evaluate(config: PipelineConfig, inputs: Inputs, context: RunContext, progress: Advance) -> StageOutcome:
    refs = inputs["samples"], inputs["snapshot"], inputs["split"]
    return evaluate_stage(*refs, config.evaluate, context, progress, runner=config.runner)
