"""What a run is compared by in MLflow: few named settings, what was changed, and no place."""

from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from flows.config import PipelineConfig, load_config
from flows.parameters import COMPARED, PLACES, public_yaml, run_parameters

TINY = {
    "configuration": "tiny",
    "ingest.spacing_mm": 4.0,
    "train_local.preset": "XS/10/0",
    "train_local.view.size": 16,
    "train_local.steps": 20,
    "train_local.batch_size": 2,
    "train_local.lr": 1e-3,
    "train_local.lr_decay": 0.0,
    "train_local.seed": 42,
    "train_global.preset": "XS/10/1",
    "train_global.steps": 20,
    "train_global.batch_size": 2,
    "train_global.lr": 1e-3,
    "train_global.lr_decay": 0.0,
    "train_global.seed": 42,
    "sample.num_volumes": 2,
    "sample.sampler": "predictor-corrector",
    "sample.num_steps": 4,
    "sample.parametrization": "velocity",
    "sample.output": "image",
    "sample.seed": 42,
}
SECRET = "/data/DOE^JOHN"


def test_a_named_configuration_has_the_named_settings_and_no_other() -> None:
    assert run_parameters(load_config("tiny")) == TINY


def test_what_was_changed_is_added_and_nothing_else() -> None:
    changed = load_config(
        "tiny", {"train_global": {"lr": 5e-4, "qk_norm": True}, "gates": {"global_below_local": True}}
    )
    expected = {"train_global.lr": 5e-4, "train_global.qk_norm": True, "gates.global_below_local": True}
    assert run_parameters(changed) == TINY | expected


def test_stage_3_is_compared_where_it_is_on() -> None:
    found = run_parameters(load_config("tiny", {"train_refiner": {"enabled": True}}))
    assert set(found) - set(TINY) == {
        "train_refiner.enabled",
        *(f"train_refiner.{name}" for name in ("preset", "steps", "batch_size", "lr", "lr_decay", "seed")),
    }


def test_a_file_without_a_base_differs_from_the_defaults() -> None:
    found = run_parameters(PipelineConfig.model_validate({"split": {"seed": 7}}))
    assert found["configuration"] == "custom"
    assert found["split.seed"] == 7


def secretive() -> PipelineConfig:
    digest = "0" * 64
    return load_config(
        "tiny",
        {
            "source": SECRET,
            "store": f"{SECRET}/store",
            "workdir": f"{SECRET}/work",
            "ingest": {"patient_key_file": f"{SECRET}/key", "scheduler": f"tcp://{SECRET}"},
            "evaluate": {"feature_weights": f"{SECRET}/weights", "feature_weights_sha256": digest},
        },
    )


def test_no_place_is_a_parameter_or_in_the_configuration_that_is_sent() -> None:
    config = secretive()
    assert run_parameters(config) == TINY | {"evaluate.feature_weights_sha256": "0" * 64}
    text = public_yaml(config)
    assert "DOE" not in text
    assert "DOE" in yaml.safe_dump(config.model_dump(mode="json"))


def test_the_configuration_that_is_sent_repeats_the_run_where_the_places_are_given_again() -> None:
    config = secretive()
    sent = yaml.safe_load(public_yaml(config))
    places = config.model_dump(mode="json", include={"source", "store", "workdir"})
    sent["ingest"] |= config.ingest.model_dump(include={"patient_key_file", "scheduler"})
    sent["evaluate"] |= config.evaluate.model_dump(include={"feature_weights"})
    assert PipelineConfig.model_validate(sent | places) == config


def texts(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of the settings that take any text."""
    for name, field in model.model_fields.items():
        kinds: tuple[Any, ...] = (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            yield from texts(inner, f"{prefix}{name}.")
        elif str in kinds and not any(getattr(rule, "pattern", None) for rule in field.metadata):
            yield prefix + name


def test_every_setting_that_takes_any_text_is_a_place_or_known_to_be_none() -> None:
    presets = {f"train_{stage}.preset" for stage in ("local", "global", "refiner")}
    harmless = presets | {"base", "experiment", "train_global.label_column", "sample.label"}
    assert set(texts(PipelineConfig)) == PLACES | harmless


def test_what_runs_are_compared_by_exists() -> None:
    dumped = PipelineConfig().model_dump()
    for key in COMPARED:
        value: Any = dumped
        for part in key.split("."):
            value = value[part]
