"""A published checkpoint file to one of our checkpoint artifacts, and back."""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prdit_models.config import CascadeConfig, ModelConfig, preset_names
from prdit_models.config import model_config as preset_config
from prdit_models.diffusion import CosineProcess
from prdit_models.flow import FlowProcess
from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks import build_network
from prdit_models.weights import check_weights
from storage.artifacts import Kind, Ref, commit_artifact, verify_artifact
from storage.checkpoints import load_tensors, save_tensors
from storage.errors import StorageError
from storage.files import fsync_directory, sha256_file, write_json_atomic
from tasks.convert.foreign import ForeignCheckpoint, read_foreign
from tasks.convert.recognise import Recognised, recognise
from tasks.sample.checkpoint import WEIGHTS_FILES, load_info
from tasks.train.config import ViewConfig

STAGE = "import-checkpoint"
RECIPE = 1
LEVEL_0_EDGE = 256  # voxels of 1 mm in the published box
NOISE_STD = {"prdit": 0.5, "sr": 0.5, "tf": 1.0, "fm": 1.0}
_TF_MEAN, _TF_STD = 0.202013, 0.200640  # of HU-like values 0..2500 clipped to [0, 1] (SPEC §3.2 d)
WINDOWS = {
    variant: HounsfieldWindow(-1000.0, 1500.0, -_TF_MEAN / _TF_STD, (1.0 - _TF_MEAN) / _TF_STD)
    if variant == "tf"
    else HounsfieldWindow()
    for variant in NOISE_STD
}
Progress = Callable[[int, int], None]
logger = logging.getLogger("prdit.convert")


@dataclass(frozen=True)
class ImportSettings:
    """What a file does not say.

    Attributes:
        variant: `prdit`, `fm`, `sr` or `tf`; None takes it from the stored model name.
        volume_size: edge of the model's volume; None takes it from the stored configuration.
        num_heads: of a width that is not published.
        noise_std: of the process; None is the variant's.
        axes: order of the arrays the model was trained on; published LIDC arrays are (x, y, z).
        window: Hounsfield window the model's range stands for; None is the variant's nominal one.
        spacing_mm: voxel distance of the training data at full size.
    """

    variant: str | None = None
    volume_size: int | None = None
    num_heads: int | None = None
    noise_std: float | None = None
    axes: str = "xyz"
    window: HounsfieldWindow | None = None
    spacing_mm: float = 1.0


def import_checkpoint(path: Path, directory: Path, settings: ImportSettings, progress: Progress) -> Ref:
    """Turn a published checkpoint file into a checkpoint artifact in `directory` (new or empty).

    Args:
        path: the file, opened read-only.
        directory: where the artifact goes.
        settings: what the file does not say.
        progress: called with (tensors written, of all).
    Raises:
        ValueError: anything about the file is not as it must be; nothing is written then.
        FileExistsError: the directory holds something.
    """
    if settings.axes not in ("xyz", "zyx"):
        raise ValueError(f"axis order is {settings.axes!r}; expected 'xyz' (published LIDC arrays) or 'zyx'.")
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; an imported checkpoint gets a folder of its own (--output).")
    foreign = read_foreign(path)
    found = recognise(foreign, variant=settings.variant, volume_size=settings.volume_size, num_heads=settings.num_heads)
    with torch.device("meta"):
        expected = build_network(found.network).state_dict()
    for name, state in (("model", foreign.model), ("ema", foreign.ema)):
        check_weights(state, expected, f"They are those under {name!r} in {path.name}; nothing was imported.")
    total = 2 * len(expected)
    for number, (name, state) in enumerate((("model", foreign.model), ("ema", foreign.ema))):
        save_tensors(directory / f"{name}.safetensors", {key: state[key].float().numpy() for key in expected})
        progress((number + 1) * len(expected), total)
    info = _info(found, foreign, settings)
    write_json_atomic(directory / "checkpoint.json", info)
    kept = {"imported": info["imported"]}
    return commit_artifact(directory, info["kind"], stage=STAGE, recipe=RECIPE, inputs={}, config=kept)


def _info(found: Recognised, foreign: ForeignCheckpoint, settings: ImportSettings) -> dict[str, Any]:
    """Content of `checkpoint.json`."""
    network, variant = found.network, found.variant
    is_cascade = isinstance(network, CascadeConfig)
    kind: Kind = "checkpoint-refiner" if is_cascade else "checkpoint-local"
    if isinstance(network, ModelConfig) and network.depth:
        kind = "checkpoint-global"
    process: CosineProcess | FlowProcess
    if variant == "fm":
        process = FlowProcess(1.0 if settings.noise_std is None else settings.noise_std)
    else:
        process = CosineProcess(NOISE_STD[variant] if settings.noise_std is None else settings.noise_std)
    size = network.volume_size
    view = ViewConfig(size=size, edge=LEVEL_0_EDGE if LEVEL_0_EDGE % size == 0 else size)
    return {
        "format_version": 1,
        "kind": kind,
        "model": network.to_dict(),
        "process": process.to_dict(),
        "intensity": asdict(settings.window or WINDOWS[variant]),
        "view": view.model_dump(mode="json"),
        "spacing_mm": settings.spacing_mm,
        "axes": settings.axes,
        "step": foreign.step,
        "seed": 0,
        "gates": {},
        "imported": {
            "variant": variant,
            "model_name": found.name,
            "source_sha256": foreign.sha256,
            "substituted": foreign.missing,
            "per_scan_intensity": True,
        },
    }


def export_checkpoint(checkpoint: Ref, path: Path) -> Path:
    """Write a checkpoint artifact as a file the published code reads: `model`, `ema`, `config`, `epoch`, `train_steps`.

    Raises:
        ValueError: the model uses arithmetic the published code has not; every such field is named.
        FileExistsError: the file exists.
        StorageError: the artifact is missing or damaged.
    """
    if not checkpoint.kind.startswith("checkpoint"):
        raise ValueError(f"export-checkpoint needs a checkpoint, got a {checkpoint.kind} at {checkpoint.uri}.")
    if path.exists():
        raise FileExistsError(f"{path} exists; exports never overwrite. Choose another name.")
    verify_artifact(checkpoint)
    info = load_info(checkpoint)
    _refuse_what_is_ours(info.model, info.process)
    content = {
        name: {key: torch.from_numpy(value) for key, value in load_tensors(checkpoint.path / file).items()}
        for name, file in (("model", WEIGHTS_FILES["raw"]), ("ema", WEIGHTS_FILES["ema"]))
    }
    window = asdict(info.window)
    config = {
        "model": _published_name(info.model),
        **_numbers(info.model),
        "noise_std": info.process.noise_std,
        **window,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            torch.save({**content, "config": config, "epoch": 0, "train_steps": info.step}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)
    logger.info("exported %s (sha256 %s)", path.name, sha256_file(path)[:12])
    return path


def _refuse_what_is_ours(network: ModelConfig | CascadeConfig, process: CosineProcess | FlowProcess) -> None:
    parts = [network.head] if isinstance(network, CascadeConfig) else [network]
    if isinstance(network, CascadeConfig):
        if isinstance(network.base, CascadeConfig):
            raise ValueError("The published code has no chained refinements; export the base or a single refinement.")
        parts.append(network.base)
    ours = []
    for part in parts:
        ours += [
            f"{name} {value!r}"
            for name, value in (("norm", part.norm), ("position", part.position))
            if value in ("rms", "rotary")
        ]
        ours += ["qk_norm"] * part.qk_norm + [f"num_classes {part.num_classes}"] * bool(part.num_classes)
    if process.prediction == "image":
        ours.append("prediction 'image'")
    if ours:
        raise ValueError(
            f"The published code cannot compute this model: it has no {', '.join(ours)}. It stays in our format."
        )


def _published_name(network: ModelConfig | CascadeConfig) -> str:
    """`PRDiT-B/12/4` for a registered shape, `…-custom` for another; `DiT-` marks TF-PRDiT's arithmetic."""
    inner = network.base if isinstance(network, CascadeConfig) else network
    if isinstance(inner, CascadeConfig):
        raise StorageError("a chained cascade has no published name")
    prefix = "DiT-" if inner.arithmetic == "tf" else "PRDiT-"
    for preset in preset_names():
        try:
            options = {
                "in_channels": inner.in_channels,
                "out_channels": inner.out_channels,
                "arithmetic": inner.arithmetic,
            }
            if preset_config(preset, inner.volume_size, **options) == inner:
                return prefix + preset
        except ValueError:
            continue
    return prefix + "custom"


def _numbers(network: ModelConfig | CascadeConfig) -> dict[str, int]:
    inner = network.base if isinstance(network, CascadeConfig) and isinstance(network.base, ModelConfig) else network
    heads = inner.num_heads if isinstance(inner, ModelConfig) else 1
    return {
        "input_size": network.volume_size,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "num_heads": heads,
    }
