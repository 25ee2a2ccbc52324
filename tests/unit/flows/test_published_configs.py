"""The published configurations: every number against a table typed from the specification, and networks of the published size."""

from typing import Any

import pytest
import torch

from flows.config import PipelineConfig, config_names, load_config
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import evaluations
from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks.build import build_network
from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from tasks.train.check import network_of

NAMES = ("published/lidc-128", "published/lidc-256", "published/rad-128")

# SPEC §4 to §6, the same in all three.
COMMON: dict[str, Any] = {
    "split.seed": 42,
    "train_local.preset": "B/12/0",
    "train_local.arithmetic": "prdit",
    "train_local.norm": "layer",
    "train_local.prediction": "noise_image",
    "train_local.view.edge": 256,
    "train_local.view.centre": None,
    "train_local.intensity.lower_hu": -1000.0,
    "train_local.steps": 104_000,
    "train_local.lr": 1e-4,
    "train_global.preset": "B/12/4",
    "train_global.steps": 130_000,
    "train_global.lr": 8e-5,
    "train_global.local_weights": "raw",
    "train_global.joint_local": False,
    "train_global.qk_norm": False,
    "train_global.position": "table",
    "train_global.label_column": None,
    "train_global.select": "last",
    "train_refiner.enabled": False,
    "sample.sampler": "predictor-corrector",
    "sample.schedule": "published",
    "sample.num_steps": 1000,
    "sample.predictor_step": 2,
    "sample.output": "state",
    "sample.batch_size": 4,
    "sample.seed": 42,
    "sample.weights": "ema",
    "sample.label": None,
    "sample.guidance_scale": 1.0,
}
BOTH_STAGES: dict[str, Any] = {
    "batch_size": 64,
    "lr_decay": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "ema_decay": 0.9999,
    "ema_warmup": False,
    "noise_std": 0.5,
    "time_distribution": "uniform",
    "ema_snapshots": 0,
    "precision": "fp32",
    "max_shift": 0,
    "seed": 42,
    "checkpoint_every": 5000,
}
# SPEC §5, by data set.
OWN: dict[str, dict[str, Any]] = {
    "published/lidc-128": {
        "ingest.spacing_mm": 1.0,
        "ingest.interpolation": "cubic",
        "split.val_fraction": 0.2,
        "train_local.view.size": 128,
        "train_local.intensity.mapping": "published-lidc",
    },
    "published/lidc-256": {
        "ingest.spacing_mm": 1.0,
        "ingest.interpolation": "cubic",
        "split.val_fraction": 0.2,
        "train_local.view.size": 256,
        "train_local.intensity.mapping": "published-lidc",
    },
    "published/rad-128": {
        "ingest.spacing_mm": 0.8,
        "split.val_fraction": 0.1,
        "train_local.view.size": 128,
        "train_local.intensity.mapping": "published-rad",
        "train_local.intensity.upper_hu": 1000.0,
    },
}


def table() -> list[tuple[str, str, Any]]:
    stages = {
        f"{stage}.{key}": value for stage in ("train_local", "train_global") for key, value in BOTH_STAGES.items()
    }
    return [(name, key, value) for name in NAMES for key, value in (COMMON | stages | OWN[name]).items()]


@pytest.fixture(scope="module")
def configs() -> dict[str, PipelineConfig]:
    return {name: load_config(name) for name in NAMES}


def test_they_come_with_prdit() -> None:
    assert [name for name in config_names() if name.startswith("published/")] == sorted(NAMES)


@pytest.mark.parametrize(("name", "key", "published"), table())
def test_a_published_number(configs: dict[str, PipelineConfig], name: str, key: str, published: Any) -> None:
    value: Any = configs[name]
    for part in key.split("."):
        value = getattr(value, part)
    assert value == published
    assert type(value) is type(published)


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_have_the_published_size(configs: dict[str, PipelineConfig], name: str) -> None:
    """39,156,160 and 93,228,992 parameters, 54,072,832 of them trained in stage 2 (SPEC §1)."""
    config = configs[name]
    local = network_of(config.train_local, {})
    assert isinstance(local, ModelConfig)
    below = {
        "model": local.to_dict(),
        "view": config.train_local.view.model_dump(),
        "spacing_mm": config.ingest.spacing_mm,
    }
    with torch.device("meta"):
        first = PRDiT(local)
        second = build_network(network_of(config.train_global, below))
    assert local.volume_size == config.train_local.view.size
    assert (local.patch_size, local.stride, local.padding, local.out_channels) == (12, 8, 2, 2)
    assert sum(p.numel() for p in first.parameters()) == 39_156_160
    assert sum(p.numel() for p in second.parameters()) == 93_228_992
    assert sum(p.numel() for p in trainable_parameters(second)) == 54_072_832
    assert second.config == model_config("B/12/4", local.volume_size)


@pytest.mark.parametrize("name", NAMES)
def test_depth_12_is_one_override_away(name: str) -> None:
    config = load_config(name, {"train_global": {"preset": "B/12/12"}})
    assert config.train_global.steps == 130_000


@pytest.mark.parametrize("name", NAMES)
def test_data_and_sampler_are_the_published_ones(configs: dict[str, PipelineConfig], name: str) -> None:
    config = configs[name]
    window = HounsfieldWindow.of_mapping(**config.train_local.intensity.model_dump())
    assert window.follows_scan
    assert (window.model_lower, window.model_upper) == ((0.0, 1.0) if "rad" in name else (-1.0, 1.0))
    assert evaluations(config.sample.as_sampler(), CosineProcess(noise_std=0.5)) == 1000
