"""A benchmark's configuration, and the runs it stands for: one per row and seed, all by one protocol."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from flows.config import PipelineConfig, load_config, merge
from flows.named_files import benchmark_files, is_file_name
from flows.settings_text import explained, read_settings
from prdit_models.families.family import FAMILIES
from storage.errors import ConfigError, UserError
from storage.files import sha256_json
from tasks.benchmark.config import ProtocolConfig, RowConfig
from tasks.evaluate.config import EvaluateConfig
from tasks.ingest.config import IngestConfig
from tasks.model.view import IntensityConfig, ViewConfig
from tasks.run.launchers.config import LauncherConfig
from tasks.run.runners import Local, RunnerSetting
from tasks.split.config import SplitConfig

_OF_THE_PROTOCOL = (
    "base",
    "source",
    "store",
    "snapshot",
    "workdir",
    "experiment",
    "ingest",
    "split",
    "evaluate",
    "gates",
    "runner",
    "launcher",
)
_OF_SAMPLES = ("num_volumes", "seed", "nifti")
_OF_A_TRAINING = ("steps", "seconds", "seed", "view", "intensity", "select", "label_column", "conditions")


class BenchmarkConfig(ProtocolConfig):
    """Protocol, rows, and where they run. `base` names a benchmark of `flows/benchmarks/`, whose keys others override."""

    base: str | None = Field(None, description="benchmark this one starts from: benchmark/tiny, …")
    source: str | None = Field(
        None, min_length=1, description="folder with scans, read-only; default: the store as it is"
    )
    store: str = Field(".prdit/benchmark-store", min_length=1, description="volume store")
    snapshot: str | None = Field(None, min_length=1, description="snapshot of the store; default: the newest")
    workdir: str = Field(".prdit/work", min_length=1, description="folder of all stage directories")
    experiment: str = Field("prdit-benchmark", min_length=1, description="MLflow experiment")
    runner: RunnerSetting = Field(default_factory=Local, description="where ingest, sample and evaluate do their work")
    launcher: LauncherConfig = Field(default_factory=lambda: LauncherConfig(), description="where trainings run")
    ingest: IngestConfig = Field(default_factory=lambda: IngestConfig())
    split: SplitConfig = Field(default_factory=lambda: SplitConfig())
    view: ViewConfig = Field(..., description="box and size of the volumes that every row ends with")
    intensity: IntensityConfig = Field(default_factory=lambda: IntensityConfig())
    evaluate: EvaluateConfig = Field(default_factory=lambda: EvaluateConfig())

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> "BenchmarkConfig":
        if self.snapshot is not None and (self.source or self.phantoms):
            raise ValueError(
                "snapshot names volumes that are there, and source or phantoms add others; give one of them"
            )
        return self

    def with_rows(self, only: str) -> "BenchmarkConfig":
        """This benchmark with some rows, named with commas; empty text: with all. Raises: ConfigError: there is no such row."""
        names = [name.strip() for name in only.split(",") if name.strip()]
        if unknown := [name for name in names if name not in self.rows]:
            raise ConfigError(f"only names {', '.join(unknown)}; the benchmark has {', '.join(self.rows)}")
        return (
            self.model_copy(update={"rows": {n: row for n, row in self.rows.items() if n in names}}) if names else self
        )

    def digest(self) -> str:
        """`sha256:…` of everything that decides results; paths, devices and titles do not."""
        left_out = {
            "base",
            "title",
            "source",
            "store",
            "snapshot",
            "workdir",
            "experiment",
            "runner",
            "launcher",
            "rows",
        }
        shared = self.model_dump(mode="json", exclude=left_out) | {
            "ingest": self.ingest.key_fields(),
            "split": self.split.key_fields(),
            "evaluate": self.evaluate.key_fields(),
        }
        rows = {name: row.model_dump(mode="json", exclude={"title", "paper"}) for name, row in self.rows.items()}
        return "sha256:" + sha256_json(shared | {"rows": rows})


@dataclass(frozen=True)
class Entry:
    """One row with one seed.

    Attributes:
        name, row: of the row.
        seed: of its trainings and samples.
        configs: a whole configuration for each sampler, by its name; they differ in `sample` alone.
    """

    name: str
    row: RowConfig
    seed: int
    configs: Mapping[str, PipelineConfig]

    @property
    def config(self) -> PipelineConfig:
        """The configuration of its trainings."""
        return next(iter(self.configs.values()))

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def load_benchmark(name_or_path: str, overrides: dict[str, Any] | None = None) -> BenchmarkConfig:
    """A benchmark by name or YAML file, with overrides on top.

    Raises: ConfigError: no such benchmark, not YAML, an unknown key or a value out of range; every problem is listed.
    """
    values = _over(_values(name_or_path, name_or_path), overrides or {})
    with explained(f"benchmark {name_or_path!r}", BenchmarkConfig):
        return BenchmarkConfig.model_validate(_without_nulls(values))


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Without the rows, and the samplers of rows, that are null: whoever starts from a benchmark leaves them out so."""
    rows = values.get("rows")
    if not isinstance(rows, dict):
        return values
    kept = {name: row for name, row in rows.items() if row is not None}
    for name, row in kept.items():
        samplers = row.get("samplers") if isinstance(row, dict) else None
        if isinstance(samplers, dict):
            kept[name] = row | {"samplers": {key: each for key, each in samplers.items() if each is not None}}
    return values | {"rows": kept}


def _values(name_or_path: str, asked: str) -> dict[str, Any]:
    """The keys of a benchmark, those of its `base` below them."""
    if is_file_name(name_or_path):
        path = Path(name_or_path)
    elif name_or_path in benchmark_files():
        path = benchmark_files()[name_or_path]
    else:
        raise ConfigError(
            f"{name_or_path!r} is not a benchmark of prdit; there are {', '.join(benchmark_files())}, and files whose name ends in "
            ".yaml"
        )
    values = read_settings(path, "the benchmark", "base: benchmark/tiny")
    base = values.get("base")
    if base is None:
        return values | (
            {"base": name_or_path} if path.parent.name == "benchmarks" and not is_file_name(name_or_path) else {}
        )
    if not isinstance(base, str) or is_file_name(base):
        raise ConfigError(f"benchmark {asked!r}: base is {base!r}; expected the name of a benchmark of prdit")
    return _over(_values(base, asked), values)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below` as in every configuration; steps take the place of seconds, and the other way round."""
    if isinstance(above.get("budget"), dict) and isinstance(below.get("budget"), dict):
        kept = {key: value for key, value in below["budget"].items() if key in above["budget"]}
        below = below | {"budget": kept}
    return merge(below, above)


def entries(config: BenchmarkConfig) -> list[Entry]:
    """Every row with every seed, the first seed of all rows first, so that a whole table is there early.

    Raises: ConfigError, InputError: a row that cannot be trained or sampled by the protocol; the row is named.
    """
    return [
        Entry(name, row, seed, {sampler: _resolved(config, name, sampler, seed) for sampler in row.samplers})
        for seed in config.seeds
        for name, row in config.rows.items()
    ]


def _resolved(config: BenchmarkConfig, name: str, sampler: str, seed: int) -> PipelineConfig:
    """The configuration of a row's run with one sampler and seed."""
    row = config.rows[name]
    where = f"row {name!r}"
    _check_overrides(row, where)
    try:
        own = load_config(row.configuration, row.overrides)
        recipe = _recipe(config, row, own, seed)
        values = own.model_dump(mode="json", exclude={"base", "recipe", "gates", "snapshot", "source"})
        values |= {
            key: getattr(config, key) for key in ("store", "snapshot", "workdir", "experiment", "runner", "launcher")
        }
        values |= {key: getattr(config, key) for key in ("ingest", "split", "evaluate")}
        counted = {"num_volumes": config.num_volumes, "seed": seed, "nifti": False}
        values["sample"] = own.sample.model_dump(mode="json") | row.samplers[sampler] | counted
        with explained(f"sampler {sampler!r}", PipelineConfig):
            return PipelineConfig.model_validate(values | {"recipe": recipe})
    except UserError as error:
        raise type(error)(
            f"{where}: {error}\nTo run the others without it, leave it out: rows.{name}: null."
        ) from error


def _check_overrides(row: RowConfig, where: str) -> None:
    """Refuse settings of a row that the protocol has."""
    doubled = [key for key in _OF_THE_PROTOCOL if key in row.overrides]
    for name, training in _mapping(row.overrides.get("recipe")).items():
        doubled += [f"recipe.{name}.{key}" for key in _OF_A_TRAINING if key in _mapping(training)]
    doubled += [f"sample.{key}" for key in _OF_SAMPLES if key in _mapping(row.overrides.get("sample"))]
    if doubled:
        raise ConfigError(
            f"{where}: overrides set {', '.join(doubled)}, which the protocol sets for all rows. Leave them out, or change the "
            "benchmark's own settings."
        )
    for sampler, settings in row.samplers.items():
        if given := [key for key in _OF_SAMPLES if key in settings]:
            raise ConfigError(
                f"{where}: samplers.{sampler} sets {', '.join(given)}, which the protocol sets for all rows."
            )


def _mapping(given: Any) -> dict[str, Any]:
    """What may be a mapping; whatever else it is, the configuration refuses."""
    return given if isinstance(given, dict) else {}


def _recipe(config: BenchmarkConfig, row: RowConfig, own: PipelineConfig, seed: int) -> dict[str, Any]:
    """The row's trainings with the protocol's view, intensity, budget and seed; the last weights are taken of each."""
    if unknown := sorted(row.shares.keys() - own.trainings.keys()):
        raise ConfigError(f"shares names {', '.join(unknown)}; its trainings are {', '.join(own.trainings)}")
    parts = {name: row.shares.get(name, 1.0) for name in own.trainings}
    if row.shares and (missing := [name for name in own.trainings if name not in row.shares]):
        raise ConfigError(f"shares leaves out {', '.join(missing)}; give each of its trainings a part of the budget")
    if config.budget.steps is not None and config.budget.steps < len(parts):
        raise ConfigError(f"budget.steps is {config.budget.steps} for {len(parts)} trainings; each needs at least one")
    recipe: dict[str, Any] = {}
    for name, training in own.trainings.items():
        budget = config.budget.of_training(parts[name] / sum(parts.values()))
        shared: dict[str, Any] = {**budget, "seed": seed, "select": "last", "label_column": None, "conditions": ()}
        if config.budget.seconds is not None:
            shared["lr_decay"] = 0.0
        if training.start is None:
            shared |= {"view": _view_of(config.view, own, name), "intensity": config.intensity}
        recipe[name] = training.model_dump(mode="json", exclude={*shared}) | shared
    return recipe


def _view_of(view: ViewConfig, own: PipelineConfig, root: str) -> ViewConfig:
    """What a training from scratch sees, so that the last of those that start from it sees the protocol's view.

    Raises: ConfigError: the size is no whole number then.
    """
    scale, reached = 1, {root}
    for name, training in own.trainings.items():
        if training.start in reached:
            reached.add(name)
            scale *= FAMILIES[training.family].scale
    if view.size % scale:
        raise ConfigError(
            f"the protocol's volumes have {view.size}³ voxels, and its trainings refine by {scale}; {view.size} is no multiple"
        )
    return view.model_copy(update={"size": math.floor(view.size / scale)})
