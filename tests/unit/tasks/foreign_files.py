"""Checkpoint files as the published code leaves them, and hostile ones, for tests of import and export."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prdit_models.networks.build import build_network
from prdit_models.networks.config import CascadeConfig, ModelConfig, NetworkConfig

TINY = ModelConfig(volume_size=8, patch_size=4, stride=2, padding=1, hidden_size=48, num_heads=4, depth=2)
LOCAL = ModelConfig(volume_size=8, patch_size=4, stride=2, padding=1, hidden_size=48, num_heads=1, depth=0)
FLOW = ModelConfig(8, 4, 2, 1, 48, 4, 1, out_channels=1)
TF = ModelConfig(8, 4, 2, 1, 48, 4, 2, arithmetic="tf")
REFINED = CascadeConfig(ModelConfig(16, 6, 4, 1, 24, 1, 0), TINY)
NETWORKS: dict[str, NetworkConfig] = {"prdit": TINY, "fm": FLOW, "tf": TF, "sr": REFINED}


def weights(config: NetworkConfig, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of a network none of whose tensors is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_network(config).state_dict().items()}
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def published(network: NetworkConfig, name: str = "PRDiT-custom", **changes: Any) -> dict[str, Any]:
    """The dictionary the published code saves (SPEC §4), with raw and averaged weights that differ."""
    base = network.base if isinstance(network, CascadeConfig) else network
    assert isinstance(base, ModelConfig)
    sizes = {"input_size": base.volume_size}
    if isinstance(network, CascadeConfig):
        sizes["target_size"] = network.volume_size
    settings = {"model": {"name": name, **sizes, "num_heads": base.num_heads}, "training": {"lr": 1e-4}}
    return {
        "model": weights(network, 1),
        "ema": weights(network, 2),
        "config": settings,
        "epoch": 7,
        "train_steps": 130000,
    } | changes


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def repack(
    path: Path,
    out: Path,
    change: Callable[[str, bytes], bytes] = lambda _, data: data,
    *,
    compression: int = zipfile.ZIP_STORED,
    extra: tuple[tuple[str, bytes], ...] = (),
) -> Path:
    """The same archive with changed entries; their checksums are right."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
        for name, data in extra:
            new.writestr(name, data)
    return out
