"""Refusals before a training starts. Imports no torch: the process that starts a training need not load it."""

from prdit_models.config import ModelConfig, model_config
from storage.artifacts import Ref
from storage.checkpoints import load_checkpoint_info
from storage.files import read_json
from tasks.train.config import TrainGlobalConfig, TrainLocalConfig


def check_training(split: Ref, local: Ref | None, config: TrainLocalConfig | TrainGlobalConfig) -> dict[str, list[str]]:
    """Refuse a training that cannot work, before anything starts; return the roles.

    Raises: ValueError: an empty role, a preset that does not fit the volume size or the stage, a wrong local checkpoint.
    """
    roles: dict[str, list[str]] = read_json(split.path / "split.json")["roles"]
    sizes = ", ".join(f"{name}: {len(ids)}" for name, ids in roles.items())
    for role in ("train", "val"):
        if not roles.get(role):
            raise ValueError(
                f"The split at {split.uri} has no volume in role {role!r} ({sizes}). "
                "Training needs at least two patients, one to train on and one to validate on: ingest more scans."
            )
    if isinstance(config, TrainLocalConfig):
        shape = model_config(config.preset, config.view.size)
        if shape.depth:
            raise ValueError(
                f"train_local.preset {config.preset!r} has depth {shape.depth}; "
                f"stage 1 is depth 0 ({_with_depth(config.preset, 0)!r})."
            )
        return roles
    if local is None or local.kind != "checkpoint-local":
        raise ValueError(
            f"Stage 2 needs a checkpoint-local, got {local.kind if local else 'none'}. Run `prdit train local` first."
        )
    base = load_checkpoint_info(local)
    shape = model_config(config.preset, base["view"]["size"])
    if not shape.depth:
        raise ValueError(
            f"train_global.preset {config.preset!r} has depth 0; stage 2 needs a transformer ({_with_depth(config.preset, 4)!r})."
        )
    expected = ModelConfig.from_dict(base["model"]).to_dict() | {"depth": shape.depth, "num_heads": shape.num_heads}
    if shape.to_dict() != expected:
        differing = {
            key: (expected.get(key), value) for key, value in shape.to_dict().items() if expected.get(key) != value
        }
        raise ValueError(
            f"train_global.preset {config.preset!r} does not continue the local checkpoint at {local.uri} "
            f"(stage 1, stage 2): {differing}. "
            "Size letter and patch must be those of stage 1."
        )
    return roles


def _with_depth(preset: str, depth: int) -> str:
    return "/".join((*preset.split("/")[:2], str(depth)))
