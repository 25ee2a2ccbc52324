"""The published configurations: every number against a table typed from the specification, and networks of the published size."""

from typing import Any

import pytest
import torch

from flows.config import PipelineConfig, config_names, load_config
from flows.pipeline import check_sampling
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.prdit import trainable_parameters

COSINE = ("published/lidc-128", "published/lidc-256", "published/rad-128")
FLOW = "published/fm-256"
NAMES = (*COSINE, FLOW)

# SPEC §3.4 to §6, the same in all of them.
COMMON: dict[str, Any] = {
    "split.seed": 42,
    "recipe.local.family": "local",
    "recipe.local.start": None,
    "recipe.local.settings.arithmetic": "prdit",
    "recipe.local.settings.norm": "layer",
    "recipe.local.view.edge": 256,
    "recipe.local.view.centre": None,
    "recipe.local.intensity.lower_hu": -1000.0,
    "recipe.local.steps": 104_000,
    "recipe.local.lr": 1e-4,
    "recipe.global.family": "global",
    "recipe.global.start": "local",
    "recipe.global.start_weights": "raw",
    "recipe.global.steps": 130_000,
    "recipe.global.lr": 8e-5,
    "recipe.global.process": None,  # the local denoiser's
    "recipe.global.settings.joint_local": False,
    "recipe.global.settings.qk_norm": False,
    "recipe.global.settings.position": "table",
    "recipe.global.label_column": None,
    "recipe.global.select": "last",
    "recipe.refiner.enabled": False,
    "sample.schedule": "published",
    "sample.parametrization": "velocity",
    "sample.output": "state",
    "sample.batch_size": 4,
    "sample.preview_every": 64,
    "sample.redraw.most": 0,
    "sample.redraw.anatomy": None,
    "sample.seed": 42,
    "sample.weights": "ema",
    "sample.precision": "fp32",
    "sample.label": None,
    "sample.guidance_scale": 1.0,
}
BOTH_TRAININGS: dict[str, Any] = {
    "enabled": True,
    "lr_decay": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "lr_warmup": 0,
    "spike_factor": 0.0,
    "ema_decay": 0.9999,
    "ema_warmup": False,
    "settings.time_distribution": "uniform",
    "ema_snapshots": 0,
    "max_shift": 0,
    **{f"augmentation.{name}": 0.0 for name in ("flip", "offset_hu", "gain", "rotation_deg", "scale")},
    "seed": 42,
    "checkpoint_every": 5000,
}
# SPEC §2 to §4: the image-and-noise process.
OF_COSINE: dict[str, Any] = {
    "recipe.local.process.name": "cosine",
    "recipe.local.process.noise_std": 0.5,
    "recipe.local.process.num_steps": 1000,
    "recipe.local.process.prediction": "noise_image",
    "recipe.local.settings.preset": "B/12/0",
    "recipe.global.settings.preset": "B/12/4",
    **{f"recipe.{name}.batch_size": 64 for name in ("local", "global")},
    **{f"recipe.{name}.accumulation": 1 for name in ("local", "global")},
    **{f"recipe.{name}.precision": "fp32" for name in ("local", "global")},
    "sample.num_volumes": 1000,
    "sample.sampler": "predictor-corrector",
    "sample.num_steps": 1000,
    "sample.predictor_step": 2,
}
# SPEC §5, by data set; SPEC §3.4 for flow matching.
OWN: dict[str, dict[str, Any]] = {
    "published/lidc-128": {
        "ingest.spacing_mm": 1.0,
        "ingest.interpolation": "cubic",
        "split.val_fraction": 0.2,
        "recipe.local.view.size": 128,
        "recipe.local.intensity.mapping": "published-lidc",
        "recipe.global.checkpointing": False,
    },
    "published/lidc-256": {
        "ingest.spacing_mm": 1.0,
        "ingest.interpolation": "cubic",
        "split.val_fraction": 0.2,
        "recipe.local.view.size": 256,
        "recipe.local.intensity.mapping": "published-lidc",
        "recipe.global.checkpointing": True,
    },
    "published/rad-128": {
        "ingest.spacing_mm": 0.8,
        "split.val_fraction": 0.1,
        "recipe.local.view.size": 128,
        "recipe.local.intensity.mapping": "published-rad",
        "recipe.local.intensity.upper_hu": 1000.0,
        "recipe.global.checkpointing": False,
    },
    FLOW: {
        "ingest.spacing_mm": 1.0,
        "ingest.interpolation": "cubic",
        "split.val_fraction": 0.1,
        "recipe.local.process.name": "flow",
        "recipe.local.process.noise_std": 1.0,
        "recipe.local.process.num_steps": 1000,
        "recipe.local.process.prediction": "velocity",
        "recipe.local.settings.preset": "B/16/0-s16",
        "recipe.local.view.size": 256,
        "recipe.local.intensity.mapping": "published-lidc",
        "recipe.local.batch_size": 16,
        "recipe.local.accumulation": 2,
        "recipe.local.precision": "bf16",
        "recipe.local.checkpointing": False,
        "recipe.local.select": "best",
        "recipe.global.settings.preset": "B/16/12-s16",
        "recipe.global.batch_size": 8,
        "recipe.global.accumulation": 4,
        "recipe.global.precision": "bf16",
        "recipe.global.checkpointing": True,
        "sample.sampler": "euler",
        "sample.num_steps": 100,
    },
}
# (patch, stride, padding, output channels), (depth, width, heads), then parameters: local, both, trained in stage 2.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    **dict.fromkeys(COSINE, ((12, 8, 2, 2), (4, 768, 12), (39_156_160, 93_228_992, 54_072_832))),
    FLOW: ((16, 16, 0, 1), (12, 768, 12), (221_520_640, 372_075_776, 150_555_136)),
}


def table() -> list[tuple[str, str, Any]]:
    both = {f"recipe.{name}.{key}": value for name in ("local", "global") for key, value in BOTH_TRAININGS.items()}
    numbers = {name: COMMON | both | (OF_COSINE if name in COSINE else {}) | OWN[name] for name in NAMES}
    return [(name, key, value) for name, found in numbers.items() for key, value in found.items()]


@pytest.fixture(scope="module")
def configs() -> dict[str, PipelineConfig]:
    return {name: load_config(name) for name in NAMES}


def test_they_come_with_prdit() -> None:
    assert [name for name in config_names() if name.startswith("published/")] == sorted(NAMES)


@pytest.mark.parametrize(("name", "key", "published"), table())
def test_a_published_number(configs: dict[str, PipelineConfig], name: str, key: str, published: Any) -> None:
    value: Any = configs[name]
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == published
    assert type(value) is type(published)


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_have_the_published_size(configs: dict[str, PipelineConfig], name: str) -> None:
    """SPEC §1, with 54,072,832 parameters trained in stage 2, and §3.4, with 150,555,136."""
    config, (patches, widths, parameters) = configs[name], SHAPES[name]
    local, global_ = config.checkpoints().values()
    with torch.device("meta"):
        first, second = local.of_family.build(local.model), global_.of_family.build(global_.model)
    view = config.recipe["local"].view
    assert view is not None
    shapes = [ModelConfig.from_dict(info.model) for info in (local, global_)]
    assert [shape.volume_size for shape in shapes] == [view.size] * 2
    assert [(shape.patch_size, shape.stride, shape.padding, shape.out_channels) for shape in shapes] == [patches] * 2
    assert (shapes[0].depth, shapes[1].depth, shapes[1].hidden_size, shapes[1].num_heads) == (0, *widths)
    assert sum(p.numel() for p in first.parameters()) == parameters[0]
    assert sum(p.numel() for p in second.parameters()) == parameters[1]
    assert sum(p.numel() for p in trainable_parameters(second)) == parameters[2]
    if name in COSINE:
        assert shapes[1] == model_config("B/12/4", view.size)


def test_flow_matching_tiles_256_voxels_with_4096_tokens(configs: dict[str, PipelineConfig]) -> None:
    """SPEC §3.4: 16³ tokens of 4096 voxels in and out, a global batch of 32 in micro-batches."""
    for info in configs[FLOW].checkpoints().values():
        shape = ModelConfig.from_dict(info.model)
        assert (shape.grid_size, shape.num_tokens, shape.token_width, shape.output_width) == (16, 4096, 4096, 4096)
    assert [each.batch_size * each.accumulation for each in configs[FLOW].trainings.values()] == [32, 32]


@pytest.mark.parametrize("name", COSINE)
def test_depth_12_is_one_override_away(name: str) -> None:
    config = load_config(name, {"recipe": {"global": {"settings": {"preset": "B/12/12"}}}})
    assert config.recipe["global"].steps == 130_000
    assert config.checkpoints()["global"].model["depth"] == 12


@pytest.mark.parametrize("name", NAMES)
def test_data_and_sampler_are_the_published_ones(configs: dict[str, PipelineConfig], name: str) -> None:
    config, made = configs[name], configs[name].checkpoints()
    assert config.recipe["local"].intensity is not None
    window = HounsfieldWindow.of_mapping(**config.recipe["local"].intensity.model_dump())
    assert window.follows_scan
    assert (window.model_lower, window.model_upper) == ((0.0, 1.0) if "rad" in name else (-1.0, 1.0))
    process = FlowProcess() if name == FLOW else CosineProcess(noise_std=0.5)
    assert [(info.process, info.window) for info in made.values()] == [(process, window)] * 2
    assert process.evaluations(config.sample.as_sampler()) == (100 if name == FLOW else 1000)
    check_sampling(config)
