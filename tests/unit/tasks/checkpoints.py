"""Committed checkpoints of small untrained networks, for tests of sampling and evaluation."""

from pathlib import Path
from typing import Any

import torch

from prdit_models.networks.build import build_network
from prdit_models.networks.config import ModelConfig, NetworkConfig
from storage.artifacts import Ref, commit_artifact
from storage.checkpoints import save_tensors
from storage.documents.checkpoint import Checkpoint, CoarseMask, Intensity, View
from storage.files import write_text_atomic

TINY = ModelConfig(volume_size=8, patch_size=4, stride=4, padding=0, hidden_size=48, num_heads=4, depth=1)


def tiny_model(seed: int = 0) -> Any:
    """A `network` that takes milliseconds."""
    return network(TINY, seed)


def network(config: NetworkConfig, seed: int = 0) -> Any:
    """A network whose output is not zero: the zero-initialised heads get small weights."""
    torch.manual_seed(seed)
    model = build_network(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.abs().sum():
            parameter.normal_(std=0.05)
    return model


def commit_checkpoint(
    directory: Path,
    family: str,
    inputs: dict[str, Ref],
    *,
    model: Any = None,
    metrics: str = "",
    process: dict[str, object] | None = None,
    mask: CoarseMask | None = None,
) -> Ref:
    """A checkpoint artifact as training leaves it; raw weights differ from the EMA's by a factor."""
    directory.mkdir(parents=True, exist_ok=True)
    model = model or tiny_model()
    tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    save_tensors(directory / "ema.safetensors", tensors)
    save_tensors(directory / "model.safetensors", {name: 0.5 * value for name, value in tensors.items()})
    Checkpoint(
        family=family,
        model=model.config.to_dict(),
        process=process or {"noise_std": 0.5, "num_steps": 1000},
        intensity=Intensity(lower_hu=-1000.0, upper_hu=1000.0, model_lower=-1.0, model_upper=1.0, mapping="window"),
        view=View(size=model.config.volume_size, edge=2 * model.config.volume_size, centre=None),
        axes="zyx",
        spacing_mm=8.0,
        step=6,
        seed=42,
        gates=None,
        mask=mask,
    ).save(directory)
    write_text_atomic(directory / "metrics.jsonl", metrics)
    stage = f"train-{family}"
    return commit_artifact(
        directory, "checkpoint", stage=stage, recipe=1, inputs=inputs, config={"lr": 0.001, "stage": stage}
    )


def commit_pair(root: Path, store: Ref, split: Ref) -> tuple[Ref, Ref]:
    """Stage 1 and stage 2 with a few rows of metrics each."""
    rows = '{"step": 1, "train/loss": 0.9}\n{"step": 2, "train/loss": 0.5, "val/loss": 0.6, "val/loss_ema": 0.7, '
    times = (50, 200, 400, 600, 800, 950)
    texts = [
        rows + ", ".join(f'"val/loss_t{t:03d}": {base + t / 10000}' for t in times) + "}\n" for base in (0.5, 0.25)
    ]
    local = commit_checkpoint(root / "local", "local", {"snapshot": store, "split": split}, metrics=texts[0])
    inputs = {"snapshot": store, "split": split, "local": local}
    return local, commit_checkpoint(root / "global", "global", inputs, metrics=texts[1])
