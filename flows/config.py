"""The one configuration of the pipeline: frozen, complete, and an error where a key is unknown."""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage.files import sha256_json
from tasks.evaluate.config import EvaluateConfig
from tasks.ingest.config import IngestConfig
from tasks.sample.config import SampleConfig
from tasks.split.config import SplitConfig
from tasks.train.check import network_of
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig
from tasks.train.gates import GatesConfig

STAGES = ("ingest", "split", "train-local", "train-global", "train-refiner", "sample", "evaluate")
# Settings that decide where a run works and how much of it, never what a stage makes: outside every cache key.
RUNTIME = frozenset({"base", "source", "store", "workdir", "experiment", "gates"})


class PipelineConfig(BaseModel):
    """Settings of a whole run: paths, then one sub-model a stage.

    `base` names a configuration of `flows/configs/`; every other key given beside it overrides that configuration's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="prdit configuration")

    base: str | None = Field(None, description="named configuration this one starts from: demo, small, tiny, …")
    source: str | None = Field(
        None, min_length=1, description="folder with DICOM series, opened read-only; default: use the store as it is"
    )
    store: str = Field(".prdit/store", min_length=1, description="volume store")
    workdir: str = Field(".prdit/work", min_length=1, description="folder of all stage directories")
    experiment: str = Field("prdit", min_length=1, description="MLflow experiment")
    ingest: IngestConfig = Field(default_factory=lambda: IngestConfig())
    split: SplitConfig = Field(default_factory=lambda: SplitConfig())
    train_local: TrainLocalConfig = Field(default_factory=lambda: TrainLocalConfig())
    train_global: TrainGlobalConfig = Field(default_factory=lambda: TrainGlobalConfig())
    train_refiner: TrainRefinerConfig = Field(default_factory=lambda: TrainRefinerConfig())
    sample: SampleConfig = Field(default_factory=lambda: SampleConfig())
    evaluate: EvaluateConfig = Field(default_factory=lambda: EvaluateConfig())
    gates: GatesConfig = Field(default_factory=lambda: GatesConfig())

    @model_validator(mode="before")
    @classmethod
    def _start_from_base(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("base") is not None:
            return merge(load_named(values["base"]), values)
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "PipelineConfig":
        """Presets that fit their volume and each other, before any scan is read."""
        view = self.train_local.view
        stages: dict[str, TrainConfig] = {"train_local": self.train_local, "train_global": self.train_global}
        if self.train_refiner.enabled:
            stages["train_refiner"] = self.train_refiner
        below: dict[str, Any] = {"view": view.model_dump(), "spacing_mm": self.ingest.spacing_mm}
        for stage in stages.values():
            below["model"] = network_of(stage, below).to_dict()
        if len({stage.noise_std for stage in stages.values()}) > 1:
            raise ValueError(f"noise_std of {', '.join(stages)} must be equal: one process for all stages")
        return self

    def stages(self, last: str) -> tuple[str, ...]:
        """Names of the stages of a run that ends with `last`: no ingest without a source, stage 3 only where enabled."""
        left_out = {"ingest": self.source is None, "train-refiner": not self.train_refiner.enabled}
        return tuple(name for name in STAGES[: STAGES.index(last) + 1] if not left_out.get(name, False))

    def digest(self) -> str:
        """`sha256:…` of what makes this the configuration it is: settings that change results, and gates; no path, no device."""
        return "sha256:" + sha256_json(self._identity(refiner=self.train_refiner.enabled))

    def tags(self) -> dict[str, str]:
        """How a run says what it runs: the named configuration, which keys differ from it, and the digest.

        `prdit.config` is the plain name only where the digest is that of the named configuration.
        """
        changed: list[str] = []
        if self.base:
            refiner = self.train_refiner.enabled
            named = load_config(self.base)._identity(refiner=refiner)
            changed = sorted(differing(self._identity(refiner=refiner), named))
        tags = {"prdit.config": (self.base or "custom") + ("+overrides" if changed else "")}
        if changed:
            tags["prdit.config_overrides"] = ", ".join(changed)
        return tags | {"prdit.config_digest": self.digest()}

    def _identity(self, *, refiner: bool) -> dict[str, Any]:
        """Settings that change results, by part; those of stage 3, beyond whether it is enabled, only where asked for."""
        names = [name for name in type(self).model_fields if name not in RUNTIME]
        parts = {name: getattr(self, name).key_fields() for name in (*names, "gates")}
        parts["train_refiner"] = {"enabled": self.train_refiner.enabled} | (parts["train_refiner"] if refiner else {})
        return parts


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, what it got and what is allowed."""


def config_names() -> list[str]:
    """Names of the configurations that come with prdit."""
    folder = Path(str(files("flows.configs")))
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def load_named(name: str) -> dict[str, Any]:
    """The keys of a named configuration, its own `base` resolved."""
    path = Path(str(files("flows.configs"))) / f"{name}.yaml"
    if name not in config_names():
        raise ValueError(f"base {name!r} is not a configuration of prdit; there are {', '.join(config_names())}")
    return _with_base(_read_yaml(path))


def load_config(name_or_path: str, overrides: dict[str, Any] | None = None) -> PipelineConfig:
    """A configuration by name or YAML file, with overrides on top.

    Raises: ConfigError: no such configuration, not YAML, an unknown key or a value out of range; every problem is listed.
    """
    path = Path(name_or_path)
    try:
        values = _read_yaml(path) if path.suffix in (".yaml", ".yml") else {"base": name_or_path}
        return PipelineConfig.model_validate(merge(values, overrides or {}))
    except ValidationError as error:
        raise ConfigError(f"configuration {name_or_path!r}:\n" + explain(error)) from error
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"configuration {name_or_path!r}: {error}") from error


def from_parameters(
    configuration: str, source: str | None = None, store: str | None = None, overrides: dict[str, Any] | None = None
) -> PipelineConfig:
    """The configuration that a flow's parameters ask for; empty text, as a form's empty field sends, counts as not given.

    Args:
        configuration: name of a configuration, or a YAML file.
        source: folder with DICOM series.
        store: volume store.
        overrides: settings on top, nested as in a YAML file.

    Raises: ConfigError: as `load_config`, or `overrides` has a key that is a parameter of its own.
    """
    paths = {key: value.strip() for key, value in (("source", source), ("store", store)) if value and value.strip()}
    if not isinstance(overrides or {}, dict):
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
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        load_config(name_or_path)
        return name_or_path, {}
    try:
        values = _read_yaml(path)
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"configuration {name_or_path!r}: {error}") from error
    if not values.get("base"):
        raise ConfigError(
            f"configuration {name_or_path!r} names no base. A deployment starts from a named configuration: add a line such as "
            f"`base: small` (there are {', '.join(config_names())})."
        )
    return str(values.pop("base")), values


def explain(error: ValidationError) -> str:
    """One line a problem: dotted key, what is wrong, and the keys that would be known."""
    lines = []
    for problem in error.errors():
        place = problem["loc"]
        key = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            known = _known_keys(PipelineConfig, place[:-1])
            lines.append(f"  {key}: unknown key. Known here: {', '.join(known)}")
        elif problem["type"] == "value_error":
            lines.append(f"  {key + ': ' if key else ''}{problem['ctx']['error']}")
        else:
            lines.append(f"  {key}: {problem['msg']}, got {problem['input']!r}")
    return "\n".join(lines)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, nested keys one by one."""
    result = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


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


def _read_yaml(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(values).__name__}")
    return values


def _known_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    for part in place:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
