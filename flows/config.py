"""The one configuration of the pipeline: frozen, complete, and an error where a key is unknown."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from flows.named_files import config_files, is_file_name
from flows.named_files import config_names as config_names
from flows.settings_text import explained, read_settings
from storage.errors import ConfigError, InputError
from storage.files import sha256_json
from storage.places import as_folder
from tasks.evaluate.config import EvaluateConfig
from tasks.ingest.config import IngestConfig
from tasks.model.checkpoint import CheckpointInfo
from tasks.run.launchers.config import LauncherConfig
from tasks.run.runners import Local, RunnerSetting
from tasks.sample.config import SampleConfig
from tasks.split.config import SplitConfig
from tasks.train.config import TrainingConfig
from tasks.train.describe import describe, expected_conditions
from tasks.train.gates import GatesConfig

# Settings that decide where a run works and how it is judged, never what a stage makes: outside every cache key.
RUNTIME = frozenset({"base", "source", "store", "snapshot", "workdir", "experiment", "gates", "launcher", "runner"})
_NAME = r"^[a-z0-9][a-z0-9-]*$"


class PipelineConfig(BaseModel):
    """Settings of a whole run: paths, ingest and split, the recipe of trainings, sampling and evaluation.

    `base` names a configuration of `flows/configs/`; every other key given beside it overrides that configuration's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="prdit configuration")

    base: str | None = Field(None, description="named configuration this one starts from: demo, small, tiny, …")
    source: str | None = Field(
        None,
        min_length=1,
        description="folder or s3://bucket/prefix with scans (DICOM, NIfTI), opened read-only; default: work on a snapshot of the "
        "store",
    )
    store: str = Field(".prdit/store", min_length=1, description="volume store: a folder, or s3://bucket/prefix")
    snapshot: str | None = Field(
        None,
        min_length=1,
        description="snapshot of the store to work on, without a source: its number or the beginning of its digest (`prdit ls`); "
        "default: the newest",
    )
    workdir: str = Field(".prdit/work", min_length=1, description="folder of all stage directories")
    experiment: str = Field("prdit", min_length=1, description="MLflow experiment")
    runner: RunnerSetting = Field(
        default_factory=Local,
        description="where ingest, sample and evaluate do their work: name (local, cuda, slurm, address) and its settings",
    )
    ingest: IngestConfig = Field(default_factory=lambda: IngestConfig())
    split: SplitConfig = Field(default_factory=lambda: SplitConfig())
    recipe: dict[Annotated[str, Field(pattern=_NAME)], TrainingConfig] = Field(
        ..., description="the trainings by name, in the order in which they run"
    )
    sample: SampleConfig = Field(default_factory=lambda: SampleConfig())
    evaluate: EvaluateConfig = Field(default_factory=lambda: EvaluateConfig())
    gates: GatesConfig = Field(default_factory=lambda: GatesConfig())
    launcher: LauncherConfig = Field(
        default_factory=lambda: LauncherConfig(),
        description="where trainings run: nodes, ranks, cluster (docs/clusters.md)",
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_base(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        found = merge(load_named(values["base"]), values) if values.get("base") is not None else dict(values)
        if isinstance(recipe := found.get("recipe"), dict):
            found["recipe"] = {name: training for name, training in recipe.items() if training is not None}
        return found

    @field_validator("workdir")
    @classmethod
    def _is_here(cls, value: str) -> str:
        as_folder(value, "the working folder")
        return value

    @field_validator("snapshot", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        """YAML reads the number of a snapshot, or a digest of digits alone, as a number."""
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _consistent(self) -> "PipelineConfig":
        """Check, before any scan is read, that trainings fit their volumes and each other, and that gates name trainings."""
        if self.source is not None and self.snapshot is not None:
            raise ValueError("snapshot names what to work on, so nothing can be ingested for it: leave source out")
        if not self.trainings:
            raise ValueError("recipe has no training that is enabled; a run needs one")
        self.checkpoints()
        for gate, names in (("max_loss_ratio", self.gates.max_loss_ratio), ("below_start", self.gates.below_start)):
            if unknown := sorted(set(names) - set(self.recipe)):
                raise ValueError(f"gates.{gate} names {', '.join(unknown)}; the recipe has {', '.join(self.recipe)}")
        if first := [name for name in self.gates.below_start if self.recipe[name].start is None]:
            raise ValueError(f"gates.below_start names {', '.join(first)}, which starts from no other training")
        return self

    @property
    def trainings(self) -> dict[str, TrainingConfig]:
        """The trainings of a run, in order; those switched off are left out."""
        return {name: training for name, training in self.recipe.items() if training.enabled}

    def checkpoints(self) -> dict[str, CheckpointInfo]:
        """What each training of a run will make, by its name; labels and conditions are placeholders: the store is not read.

        Raises: InputError: trainings do not fit together: a start is missing, or a training cannot start from it.
        """
        found: dict[str, CheckpointInfo] = {}
        for name, training in self.trainings.items():
            if training.start is not None and training.start not in found:
                later = "comes later" if training.start in self.trainings else "is not enabled"
                why = f", which {later}" if training.start in self.recipe else ""
                raise InputError(
                    f"recipe.{name}.start is {training.start!r}{why}; it must name an earlier training: "
                    f"{', '.join(found) or 'there is none'}"
                )
            start = found[training.start] if training.start else None
            labels = ("one", "another") if training.label_column else ()
            try:
                found[name] = describe(training, start, self.ingest.spacing_mm, labels, expected_conditions(training))
            except InputError as error:
                raise InputError(f"recipe.{name}: {error}") from error
        return found

    def digest(self) -> str:
        """`sha256:…` of the settings that change results and of the gates, without paths and devices."""
        order = list(self.trainings)  # the last is sampled
        return "sha256:" + sha256_json(self._identity(order) | {"order": order})

    def tags(self) -> dict[str, str]:
        """Tags that say what a run runs: the named configuration, the keys that differ from it, and the digest.

        `prdit.config` is the plain name only where the digest is that of the named configuration.
        """
        changed: list[str] = []
        if self.base:
            named = load_config(self.base)._identity(self.trainings)
            changed = sorted(differing(self._identity(self.trainings), named))
        tags = {"prdit.config": (self.base or "custom") + ("+overrides" if changed else "")}
        if changed:
            tags["prdit.config_overrides"] = ", ".join(changed)
        return tags | {"prdit.config_digest": self.digest()}

    def _identity(self, shown: Collection[str]) -> dict[str, Any]:
        """Settings that change results, by part; of trainings that are not among `shown`, only whether they are enabled."""
        names = ("ingest", "split", "sample", "evaluate", "gates")
        parts: dict[str, Any] = {name: getattr(self, name).key_fields() for name in names}
        parts["recipe"] = {
            name: {"enabled": training.enabled} | (training.key_fields() if name in shown else {})
            for name, training in self.recipe.items()
        }
        return parts


def load_named(name: str) -> dict[str, Any]:
    """The keys of a named configuration, its own `base` resolved."""
    if not isinstance(name, str) or name not in config_files():
        raise ConfigError(
            f"base {name!r} is not a configuration of prdit; there are {', '.join(config_names())}, and files whose name ends in "
            ".yaml"
        )
    return _with_base(read_settings(config_files()[name]))


def load_config(name_or_path: str, overrides: dict[str, Any] | None = None) -> PipelineConfig:
    """A configuration by name or YAML file, with overrides on top.

    Raises: ConfigError: no such configuration, not YAML, an unknown key or a value out of range; every problem is listed.
    """
    values = read_settings(Path(name_or_path)) if _is_file_name(name_or_path) else {"base": name_or_path}
    with pydantic_explained(f"configuration {name_or_path!r}"):
        return PipelineConfig.model_validate(merge(values, overrides or {}))


def _is_file_name(name_or_path: str) -> bool:
    """Whether a configuration is a file. Raises: ConfigError: it is empty text."""
    if not name_or_path.strip():
        raise ConfigError(
            f"the configuration is empty text; is a shell variable unset? There are {', '.join(config_names())}, and files whose "
            "name ends in .yaml."
        )
    return is_file_name(name_or_path)


def from_parameters(
    configuration: str, source: str | None = None, store: str | None = None, overrides: dict[str, Any] | None = None
) -> PipelineConfig:
    """The configuration that a flow's parameters ask for; empty text, as a form's empty field sends, counts as not given.

    Args:
        configuration: name of a configuration, or a YAML file.
        source: folder with scans.
        store: volume store.
        overrides: settings on top, nested as in a YAML file.

    Raises: ConfigError: as `load_config`, or `overrides` has a key that is a parameter of its own.
    """
    paths = {key: value.strip() for key, value in (("source", source), ("store", store)) if value and value.strip()}
    if overrides is not None and not isinstance(overrides, dict):
        raise ConfigError(f"overrides must be a mapping of settings, got {overrides!r}")
    doubled = sorted({"base", "source", "store"} & set(overrides or {}))
    if doubled:
        raise ConfigError(
            f"overrides: {', '.join(doubled)} cannot be set here; configuration (for base), source and store are parameters "
            "of their own, beside overrides"
        )
    return load_config(configuration, merge(overrides or {}, paths))


def as_parameters(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """What a deployment is given for a configuration by name or YAML file: the name, and a file's other keys as overrides.

    Raises: ConfigError: the file cannot be read, or names no base.
    """
    if not _is_file_name(name_or_path):
        load_config(name_or_path)
        return name_or_path, {}
    values = read_settings(Path(name_or_path))
    if not values.get("base"):
        raise ConfigError(
            f"configuration {name_or_path!r} names no base. A deployment starts from a named configuration: add a line such as "
            f"`base: small` (there are {', '.join(config_names())}), and `null` for each of its trainings that yours "
            "replace; or run the file as it is with `prdit run --config`."
        )
    return str(values.pop("base")), values


def pydantic_explained(what: str) -> AbstractContextManager[None]:
    """Turn pydantic's account of wrong settings into ours. Raises: ConfigError: settings are wrong; every problem is listed."""
    return explained(what, PipelineConfig)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, nested keys one by one.

    Where both name a family, a process, a launcher, a runner or an extractor, and different ones, the settings that `below` has for
    its own are dropped.
    """
    result = dict(below)
    if _differ("family", below, above) or _differ("name", below, above):
        result.pop("settings", None)
    for key, value in above.items():
        known = result.get(key)
        named = key in ("process", "runner", "extractor")
        if named:
            known, value = _by_name(known), _by_name(value)
        if key == "runner" and isinstance(known, dict):
            known = {"name": "local"} | known
        if isinstance(value, dict) and isinstance(known, dict) and not (named and _differ("name", known, value)):
            result[key] = merge(known, value)
        else:
            result[key] = value
    return result


def _differ(key: str, below: dict[str, Any], above: dict[str, Any]) -> bool:
    """Whether both have a key, with different values."""
    return key in below and key in above and below[key] != above[key]


def _by_name(value: Any) -> Any:
    """A process, runner or extractor given by name alone, as a mapping."""
    return {"name": value} if isinstance(value, str) else value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted key, in order."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Dotted keys whose values differ, or that only one side has."""
    here, there = dict(leaves(one)), dict(leaves(other))
    return {key for key in here.keys() | there.keys() if here.get(key) != there.get(key)}


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    base = values.pop("base", None)
    return values if base is None else merge(load_named(base), values)
