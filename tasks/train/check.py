"""Refusals before a training starts, and the shape of what it trains. Imports no torch: who starts a training need not load it."""

from typing import Any

from prdit_models.config import CascadeConfig, ModelConfig, NetworkConfig, model_config, network_config
from storage.artifacts import Ref
from storage.checkpoints import load_checkpoint_info
from storage.files import read_json
from storage.volume_store import VolumeStore
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig
from tasks.train.labels import label_values
from tasks.train.spec import training_of

_SAME_MM = 1e-6
_COMMAND = {"local": "prdit train local", "base": "prdit train global"}


def check_training(store: Ref, split: Ref, below: Ref | None, config: TrainConfig) -> dict[str, list[str]]:
    """Refuse a training that cannot work, before anything starts; return the roles.

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
    spacing = VolumeStore.open(store.path).spacing_mm
    if base and abs(spacing - base["spacing_mm"]) > _SAME_MM:
        raise ValueError(
            f"The store at {store.uri} has {spacing} mm voxels, the checkpoint below was trained at {base['spacing_mm']} mm: its "
            "view would show another size of body. Ingest into a store of that spacing (ingest.spacing_mm)."
        )
    network_of(config, base, len(class_values(store, roles, config)))
    return roles


def class_values(store: Ref, roles: dict[str, list[str]], config: TrainConfig) -> tuple[str, ...]:
    """Values of the label column in the training role; none where the stage has no labels."""
    column = config.label_column if isinstance(config, TrainGlobalConfig) else None
    return label_values(VolumeStore.open(store.path), column, roles["train"]) if column else ()


def network_of(config: TrainConfig, base: dict[str, Any], num_classes: int = 0) -> NetworkConfig:
    """Shape of the network a training trains.

    Args:
        config: of the training.
        base: `checkpoint.json` of the checkpoint it starts from; empty for stage 1.
        num_classes: labels, for stage 2.
    Raises: ValueError: presets, sizes or stages that do not go together.
    """
    if isinstance(config, TrainLocalConfig):
        return local_shape(config)
    if isinstance(config, TrainRefinerConfig):
        return _cascade(config, base)
    return _global_shape(config, base, num_classes)


def local_shape(config: TrainLocalConfig) -> ModelConfig:
    """Shape of a stage-1 network."""
    options = {"arithmetic": config.arithmetic, "norm": config.norm, "out_channels": _channels(config.prediction)}
    shape = model_config(config.preset, config.view.size, **options)
    if shape.depth:
        raise ValueError(
            f"train_local.preset {config.preset!r} has depth {shape.depth}; "
            f"stage 1 is depth 0 ({_with_depth(config.preset, 0)!r})."
        )
    return shape


def _global_shape(config: TrainGlobalConfig, base: dict[str, Any], num_classes: int) -> ModelConfig:
    stage_1 = ModelConfig.from_dict(base["model"])
    shape = global_shape(config, stage_1, voxel_mm=voxel_mm(base), num_classes=num_classes)
    differing = {
        key: (getattr(stage_1, key), getattr(shape, key))
        for key in ("patch_size", "stride", "padding", "hidden_size")
        if getattr(stage_1, key) != getattr(shape, key)
    }
    if differing:
        raise ValueError(
            f"train_global.preset {config.preset!r} does not continue the local checkpoint (stage 1, stage 2): {differing}. "
            "Size letter and patch must be those of stage 1."
        )
    return shape


def global_shape(
    config: TrainGlobalConfig, stage_1: ModelConfig, *, voxel_mm: float, num_classes: int = 0
) -> ModelConfig:
    """Shape of a stage-2 network: norms and channels are stage 1's, the rest its own.

    Raises: ValueError: a preset without transformer, or one that cannot be built.
    """
    options: dict[str, Any] = {
        "in_channels": stage_1.in_channels,
        "out_channels": stage_1.out_channels,
        "arithmetic": stage_1.arithmetic,
        "norm": stage_1.norm,
    }
    if _depth(config.preset):
        rotary = {"position": "rotary", "voxel_mm": voxel_mm} if config.position == "rotary" else {}
        options |= rotary | {"qk_norm": config.qk_norm, "num_classes": num_classes}
    shape = model_config(config.preset, stage_1.volume_size, **options)
    if not shape.depth:
        raise ValueError(
            f"train_global.preset {config.preset!r} has depth 0; stage 2 needs a transformer ({_with_depth(config.preset, 4)!r})."
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
    head = model_config(config.preset, size, **head_options(below))
    if head.depth:
        raise ValueError(
            f"train_refiner.preset {config.preset!r} has depth {head.depth}; the refining head is a local denoiser, depth 0 "
            f"({_with_depth(config.preset, 0)!r})."
        )
    return CascadeConfig(head, below)


def head_options(below: NetworkConfig) -> dict[str, Any]:
    """What a refining head takes over from the model below: channels and norms."""
    own = below.head if isinstance(below, CascadeConfig) else below
    return {name: getattr(own, name) for name in ("in_channels", "out_channels", "arithmetic", "norm")}


def voxel_mm(info: dict[str, Any]) -> float:
    """Voxel distance of what a checkpoint's model sees, mm."""
    return float(info["view"]["edge"]) * float(info["spacing_mm"]) / float(info["view"]["size"])


def _channels(prediction: str) -> int:
    return 1 if prediction == "image" else 2


def _depth(preset: str) -> bool:
    return not preset.endswith("/0")


def _with_depth(preset: str, depth: int) -> str:
    return "/".join((*preset.split("/")[:2], str(depth)))
