"""Which settings MLflow shows of a run: the few that people compare by, and those that differ from the named configuration.

The complete configuration is an artifact of the run, without the places it names: paths may tell who was scanned.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from flows.config import PipelineConfig, differing, leaves

# What a run is compared by, in the order of the pipeline.
COMPARED = (
    "ingest.spacing_mm",
    *(f"train_local.{name}" for name in ("preset", "view.size", "steps", "batch_size", "lr", "lr_decay", "seed")),
    *(f"train_global.{name}" for name in ("preset", "steps", "batch_size", "lr", "lr_decay", "seed")),
    *(f"train_refiner.{name}" for name in ("preset", "steps", "batch_size", "lr", "lr_decay", "seed")),
    *(f"sample.{name}" for name in ("num_volumes", "sampler", "num_steps", "parametrization", "output", "seed")),
)
# Paths, and the address of a scheduler: they differ between machines and stay on this one.
PLACES = frozenset(
    {"source", "store", "workdir", "ingest.patient_key_file", "ingest.scheduler", "evaluate.feature_weights"}
)
_NAMED_ELSEWHERE = frozenset({"base", "experiment"})  # the parameter `configuration`, and the page itself


def run_parameters(config: PipelineConfig) -> dict[str, Any]:
    """`configuration`, its name, then settings by dotted key: those of `COMPARED`, and what was changed from the name's.

    A stage that is switched off has none of the first kind.
    """
    settings = config.model_dump(mode="json")
    values = dict(leaves(settings))
    on = {key for key in COMPARED if config.train_refiner.enabled or not key.startswith("train_refiner.")}
    changed = differing(settings, PipelineConfig(base=config.base).model_dump(mode="json"))
    chosen = [key for key in values if key in (on | changed) - PLACES - _NAMED_ELSEWHERE]
    return {"configuration": config.base or "custom"} | {key: values[key] for key in chosen}


def public_yaml(config: PipelineConfig) -> str:
    """The resolved configuration without the places it names, as YAML."""
    values = _without(config.model_dump(mode="json"), "")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _without(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        key: _without(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if prefix + key not in PLACES
    }
