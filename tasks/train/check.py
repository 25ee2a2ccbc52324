"""Refusals before a training starts, and the shape of what it trains. Imports no torch: who starts a training need not load it."""

from dataclasses import dataclass
from typing import Any

from prdit_models.networks.config import (
    PREDICTIONS,
    CascadeConfig,
    ModelConfig,
    NetworkConfig,
    model_config,
    network_config,
)
from storage.artifacts import Ref
from storage.checkpoints import load_checkpoint_info
from storage.files import read_json
from storage.volume_store import VolumeStore
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig, ViewConfig
from tasks.train.labels import label_values
from tasks.train.spec import training_of

_SAME_MM = 1e-6
_COMMAND = {"local": "prdit train local", "base": "prdit train global"}


@dataclass(frozen=True)
class Start:
    """What a training begins with, found by its checks.

    Attributes:
        roles: volume ids by role.
        below: `checkpoint.json` of the checkpoint it starts from; empty for stage 1.
        label_values: values of the label column in the training role; empty without labels.
        network: shape of what it trains.
    """

    roles: dict[str, list[str]]
    below: dict[str, Any]
    label_values: tuple[str, ...]
    network: NetworkConfig


def check_training(store: Ref, split: Ref, below: Ref | None, config: TrainConfig) -> Start:
    """Refuse a training that cannot work, before anything starts; return what it begins with.

    Raises: ValueError: an empty role, a preset that does not fit the volume size or the stage, a checkpoint it cannot start from.
    """
    roles: dict[str, list[str]] = read_json(split.path / "split.json")["roles"]
    sizes = ", ".join(f"{name}: {len(ids)}" for name, ids in roles.items())
    for role in ("train", "val"):
        if not roles.get(role):
            raise ValueError(
                f"The split at {split.uri} has no volume in role {role!r} ({sizes}). "
                "Training needs at least two patients, one to train on and one to validate on: ingest more scans."
            )
    training = training_of(config)
    if training.below and (below is None or below.kind not in training.below_kinds):
        got = below.kind if below else "none"
        raise ValueError(
            f"Stage {training.stage.name} starts from a {' or '.join(training.below_kinds)}, got {got}. "
            f"Run `{_COMMAND[training.below]}` first."
        )
    base = load_checkpoint_info(below) if below else {}
    opened = VolumeStore.open(store.path)
    if base and abs(opened.spacing_mm - base["spacing_mm"]) > _SAME_MM:
        raise ValueError(
            f"The store at {store.uri} has {opened.spacing_mm} mm voxels, the checkpoint below was trained at "
            f"{base['spacing_mm']} mm: its view would show another size of body. Ingest into a store of that spacing "
            "(ingest.spacing_mm)."
        )
    column = config.label_column if isinstance(config, TrainGlobalConfig) else None
    values = label_values(opened, column, roles["train"]) if column else ()
    return Start(roles, base, values, network_of(config, base, len(values)))


def network_of(config: TrainConfig, base: dict[str, Any], num_classes: int = 0) -> NetworkConfig:
    """Shape of the network a training trains.

    Args:
        config: of the training.
        base: `checkpoint.json` of the checkpoint it starts from; empty for stage 1.
        num_classes: labels, for stage 2.
    Raises: ValueError: presets, sizes or stages that do not go together.
    """
    if isinstance(config, TrainLocalConfig):
        return _local(config)
    if isinstance(config, TrainRefinerConfig):
        return _cascade(config, base)
    return _global(config, base, num_classes)


def _local(config: TrainLocalConfig) -> ModelConfig:
    options = {"arithmetic": config.arithmetic, "norm": config.norm, "out_channels": PREDICTIONS[config.prediction]}
    shape = model_config(config.preset, config.view.size, **options)
    if shape.depth:
        raise ValueError(
            f"train_local.preset {config.preset!r} has depth {shape.depth}; "
            f"stage 1 is depth 0 ({_with_depth(config.preset, 0)!r})."
        )
    return shape


def _global(config: TrainGlobalConfig, base: dict[str, Any], num_classes: int) -> ModelConfig:
    """Norms and channels are stage 1's, the rest its own."""
    stage_1 = ModelConfig.from_dict(base["model"])
    options = inherited_options(stage_1)
    if not config.preset.endswith(
        "/0"
    ):  # of a preset without transformer the message below says more than that of its options
        options |= {"qk_norm": config.qk_norm, "num_classes": num_classes}
    if config.position == "rotary":
        options |= {
            "position": "rotary",
            "voxel_mm": ViewConfig.model_validate(base["view"]).voxel_mm(base["spacing_mm"]),
        }
    shape = model_config(config.preset, stage_1.volume_size, **options)
    if not shape.depth:
        raise ValueError(
            f"train_global.preset {config.preset!r} has depth 0; stage 2 needs a transformer ({_with_depth(config.preset, 4)!r})."
        )
    differing = {
        key: (getattr(stage_1, key), getattr(shape, key))
        for key in ("patch_size", "stride", "padding", "hidden_size")
        if getattr(stage_1, key) != getattr(shape, key)
    }
    if differing:
        raise ValueError(
            f"train_global.preset {config.preset!r} does not continue the local checkpoint (stage 1, stage 2): {differing}. "
            "It must have size letter and patch of stage 1."
        )
    return shape


def _cascade(config: TrainRefinerConfig, base: dict[str, Any]) -> CascadeConfig:
    below, edge = network_config(base["model"]), base["view"]["edge"]
    size = 2 * below.volume_size
    if edge % size:
        raise ValueError(
            f"The model below sees {edge} voxels as {below.volume_size}; one level up is {size}, which does not divide {edge}. "
            "There is no finer level to refine to."
        )
    head = model_config(config.preset, size, **inherited_options(below))
    if head.depth:
        raise ValueError(
            f"train_refiner.preset {config.preset!r} has depth {head.depth}; the refining head is a local denoiser, depth 0 "
            f"({_with_depth(config.preset, 0)!r})."
        )
    return CascadeConfig(head, below)


def inherited_options(below: NetworkConfig) -> dict[str, Any]:
    """What a stage takes over from the model below: channels and norms."""
    own = below.head if isinstance(below, CascadeConfig) else below
    return {name: getattr(own, name) for name in ("in_channels", "out_channels", "arithmetic", "norm")}


def _with_depth(preset: str, depth: int) -> str:
    return "/".join((*preset.split("/")[:2], str(depth)))
