"""What a run is compared by in MLflow: few named settings, what was changed, and no place."""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from pydantic import BaseModel

from flows.config import PipelineConfig, config_names, load_config
from flows.parameters import PLACES, columns, compared, public_yaml, run_parameters
from prdit_models.diffusion.process import PROCESSES
from prdit_models.families.family import FAMILIES
from prdit_models.metrics.extractors.extractor import EXTRACTORS

TINY = {
    "configuration": "tiny",
    "ingest.spacing_mm": 4.0,
    "recipe.local.settings.preset": "XS/10/0",
    "recipe.local.view.size": 16,
    "recipe.local.steps": 20,
    "recipe.local.batch_size": 2,
    "recipe.local.lr": 1e-3,
    "recipe.local.lr_decay": 0.0,
    "recipe.local.seed": 42,
    "recipe.global.settings.preset": "XS/10/1",
    "recipe.global.steps": 20,
    "recipe.global.batch_size": 2,
    "recipe.global.lr": 1e-3,
    "recipe.global.lr_decay": 0.0,
    "recipe.global.seed": 42,
    "sample.num_volumes": 2,
    "sample.sampler": "predictor-corrector",
    "sample.num_steps": 4,
    "sample.parametrization": "velocity",
    "sample.output": "image",
    "sample.seed": 42,
}
ONE = {"recipe": {"one": {"family": "local", "steps": 10, "lr": 1e-3}}}
SECRET = "/data/DOE^JOHN"


def test_a_named_configuration_has_the_named_settings_and_no_other() -> None:
    assert run_parameters(load_config("tiny")) == TINY


def test_what_was_changed_is_added_and_nothing_else() -> None:
    trainings = {"local": {"process": {"prediction": "image"}}, "global": {"lr": 5e-4, "settings": {"qk_norm": True}}}
    gates = {"below_start": ["global"], "max_loss_ratio": {"local": 0.5}}
    changed = run_parameters(load_config("tiny", {"recipe": trainings, "gates": gates}))
    process = {name: changed.pop(name) for name in list(changed) if name.startswith("recipe.local.process")}
    assert process["recipe.local.process.prediction"] == "image"
    assert changed == TINY | {
        "recipe.global.lr": 5e-4,
        "recipe.global.settings.qk_norm": True,
        "gates.below_start": ["global"],
        "gates.max_loss_ratio.local": 0.5,
    }


def test_stage_3_is_compared_where_it_is_on() -> None:
    config = load_config("tiny", {"recipe": {"refiner": {"enabled": True}}})
    compared = ("settings.preset", "steps", "batch_size", "lr", "lr_decay", "seed")
    assert set(run_parameters(config)) - set(TINY) == {
        "recipe.refiner.enabled",
        *(f"recipe.refiner.{name}" for name in compared),
    }
    assert set(columns(config)) - set(columns(load_config("tiny"))) == {"train-refiner/val/loss_ema"}


def test_the_columns_are_figures_of_the_evaluation_and_losses_of_the_trainings() -> None:
    assert columns(load_config("tiny")) == (
        "evaluate/anatomy_pass_share",
        "evaluate/nearest_training_distance",
        "train-local/val/loss_ema",
        "train-global/val/loss_ema",
    )


def test_a_file_without_a_base_differs_from_the_defaults() -> None:
    found = run_parameters(PipelineConfig.model_validate({**ONE, "split": {"seed": 7}}))
    assert found["configuration"] == "custom"
    assert found["split.seed"] == 7
    assert found["recipe.one.steps"] == 10
    assert "split.name" not in found


def secretive() -> PipelineConfig:
    digest = "0" * 64
    return load_config(
        "tiny",
        {
            "source": SECRET,
            "store": f"{SECRET}/store",
            "workdir": f"{SECRET}/work",
            "ingest": {"patient_key_file": f"{SECRET}/key"},
            "runner": {"name": "address", "scheduler": "tcp://DOE-1:8786"},
            "evaluate": {"extractor": {"name": "medicalnet", "path": f"{SECRET}/weights", "sha256": digest}},
            "recipe": {"global": {"cache_dir": f"{SECRET}/cache"}},
            "sample": {"mask": f"{SECRET}/lungs.nii.gz"},
        },
    )


def test_no_place_is_a_parameter_or_in_the_configuration_that_is_sent() -> None:
    config = secretive()
    assert run_parameters(config) == TINY | {
        "evaluate.extractor.name": "medicalnet",
        "evaluate.extractor.sha256": "0" * 64,
    }
    text = public_yaml(config)
    assert "DOE" not in text
    assert "DOE" in yaml.safe_dump(config.model_dump(mode="json"))


def test_the_configuration_that_is_sent_repeats_the_run_where_the_places_are_given_again() -> None:
    config = secretive()
    sent = yaml.safe_load(public_yaml(config))
    places = config.model_dump(mode="json", include={"source", "store", "workdir", "runner"})
    sent["ingest"] |= config.ingest.model_dump(include={"patient_key_file"})
    sent["evaluate"]["extractor"]["path"] = config.evaluate.extractor.path
    sent["recipe"]["global"] |= {"cache_dir": config.recipe["global"].cache_dir}
    sent["sample"] |= {"mask": config.sample.mask}
    assert PipelineConfig.model_validate(sent | places) == config


def texts(model: type[Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of the settings that take any text, those of a training under `recipe`."""
    kinds = get_type_hints(model, include_extras=True)
    for name in model.model_fields if issubclass(model, BaseModel) else [f.name for f in dataclasses.fields(model)]:
        options: tuple[Any, ...] = (kinds[name], *get_args(kinds[name]))
        rules = model.model_fields[name].metadata if issubclass(model, BaseModel) else []
        inner = next((kind for kind in options if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None:
            yield from texts(inner, f"{prefix}{name}.")
        elif str in options and not any(getattr(rule, "pattern", None) for rule in rules):
            yield prefix + name


def test_every_setting_that_takes_any_text_is_a_place_or_known_to_be_none() -> None:
    """Of a run, of each family, process and extractor."""
    training = {f"recipe.{name}" for name in ("family", "start", "label_column", "conditions")}
    gates = {"gates.below_start", "gates.max_loss_ratio"}  # names of trainings
    harmless = (
        training
        | gates
        | {
            "ingest.excluded_body_parts",
            "base",
            "snapshot",
            "experiment",
            "sample.label",
            "sample.sampler",
            "sample.mask_volume",
        }
    )
    # What settings a launcher or a runner has is its own; none of them is sent. Of an extractor, the path of its file is not.
    known = PLACES - {"evaluate.extractor.path"} | harmless | {"launcher.name", "evaluate.metrics", "sample.conditions"}
    assert set(texts(PipelineConfig)) | {"launcher.settings", "runner"} == known
    found = {name: set(texts(EXTRACTORS[name])) for name in EXTRACTORS.names()}
    assert {name: keys for name, keys in found.items() if keys} == {
        "medicalnet": {"path", "sha256"},
        "file": {"path", "sha256", "network", "title", "axes"},
    }
    of_families = {name: set(texts(FAMILIES[name].settings)) for name in FAMILIES.names()}
    assert {name: keys for name, keys in of_families.items() if keys} == {
        "local": {"preset"},
        "local-alone": {"preset"},
        "global": {"preset"},
        "refiner": {"preset"},
    }
    assert {name: set(texts(PROCESSES[name])) for name in PROCESSES.names()} == {
        "cosine": {"prediction"},
        "flow": {"prediction"},
        "ddpm": set(),
    }


@pytest.mark.parametrize("name", config_names())
def test_what_runs_are_compared_by_exists(name: str) -> None:
    config = load_config(name)
    if "local" in config.recipe:
        config = load_config(name, {"recipe": {"local": {"view": {}}}})
    shown = run_parameters(config)
    missing = [key for key in compared(config) if key not in shown]
    assert missing == [f"recipe.{name}.view.size" for name, training in config.trainings.items() if training.start]
