"""Which settings MLflow shows of a run: the few that runs are compared by, and those that differ from the named configuration.

The complete configuration is an artifact of the run, without paths: they may reveal who was scanned.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from flows.config import PipelineConfig, differing, leaves, load_config
from flows.stages import training_row

# What a run is compared by, in the order of the pipeline; of every training and of a run.
_OF_A_TRAINING = ("settings.preset", "view.size", "steps", "batch_size", "lr", "lr_decay", "seed")
_OF_SAMPLING = ("num_volumes", "sampler", "num_steps", "parametrization", "output", "seed")
# Paths, addresses, accounts: they differ between machines and stay on this one.
PLACES = frozenset(
    {
        *("source", "store", "workdir", "ingest.patient_key_file", "evaluate.extractor.path", "sample.mask"),
        *("launcher.settings", "runner", "recipe.cache_dir"),  # the last of every training
    }
)
_TRAINING = re.compile(r"^recipe\.[^.]+\.")
_NAMED_ELSEWHERE = frozenset({"base", "experiment"})  # the parameter `configuration`, and the page itself


def compared(config: PipelineConfig) -> tuple[str, ...]:
    """Dotted keys of the settings a run is compared by, in order; disabled trainings have none, and not every family a preset."""
    trainings = [
        f"recipe.{name}.{key}"
        for name, training in config.trainings.items()
        for key in _OF_A_TRAINING
        if key != "settings.preset" or hasattr(training.settings, "preset")
    ]
    return ("ingest.spacing_mm", *trainings, *(f"sample.{key}" for key in _OF_SAMPLING))


def columns(config: PipelineConfig) -> tuple[str, ...]:
    """Metrics that MLflow's table of runs shows."""
    losses = (f"{training_row(name)}/val/loss_ema" for name in config.trainings)
    return ("evaluate/anatomy_pass_share", "evaluate/nearest_training_distance", *losses)


def run_parameters(config: PipelineConfig) -> dict[str, Any]:
    """`configuration`, its name, then settings by dotted key: those of `compared`, and those that differ from the named ones.

    A configuration without a base shows what is not a default, of its trainings what they are compared by.
    """
    settings = config.model_dump(mode="json")
    values = dict(leaves(_without(settings, "")))
    named = load_config(config.base) if config.base else PipelineConfig(recipe=config.recipe)
    shown = {*compared(config), *differing(settings, named.model_dump(mode="json"))} - _NAMED_ELSEWHERE
    return {"configuration": config.base or "custom"} | {key: values[key] for key in values if key in shown}


def public_yaml(config: PipelineConfig) -> str:
    """The resolved configuration without `PLACES`, as YAML."""
    values = _without(config.model_dump(mode="json"), "")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _without(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        key: _without(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if _TRAINING.sub("recipe.", prefix + key) not in PLACES
    }
