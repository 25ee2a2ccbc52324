"""Export: a checkpoint artifact -> a file that the published code reads."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from prdit_models.diffusion.process import Process
from prdit_models.networks.build import build_network
from prdit_models.networks.config import ModelConfig, NetworkConfig, network_config, preset_names, tiling_preset_names
from prdit_models.networks.config import model_config as preset_config
from prdit_models.networks.weights import check_weights
from storage.artifacts import Ref, verify_artifact
from storage.checkpoints import WEIGHTS_FILES
from storage.documents.checkpoint import Checkpoint
from storage.errors import AlreadyExistsError, InputError, as_input_error
from storage.files import replacing
from tasks.convert.importing import NOISE_STD, OURS, Progress
from tasks.model.checkpoint import CheckpointInfo, load_info

_PUBLISHED_STEPS = 1000
logger = logging.getLogger("prdit.convert")


def export_checkpoint(checkpoint: Ref, path: Path, progress: Progress) -> Path:
    """Write a checkpoint artifact as a file the published code reads: `model`, `ema`, `config`, `epoch`, `train_steps`.

    Args:
        checkpoint: any checkpoint artifact whose arithmetic was published.
        path: the file, new.
        progress: called with (steps done, total).
    Raises:
        InputError: the model uses arithmetic that the published code does not have; every such field is named.
        AlreadyExistsError: the file exists.
        StorageError: the artifact is missing or damaged.
    """
    total = 4
    progress(0, total)
    if checkpoint.kind != "checkpoint":
        raise InputError(
            f"export-checkpoint needs a checkpoint, got a {checkpoint.kind} at {checkpoint.uri}. Give the folder of a training "
            "or of an import."
        )
    if path.exists():
        raise AlreadyExistsError(f"{path} exists; exports never overwrite. Choose another name.")
    verify_artifact(checkpoint)
    progress(1, total)
    info, imported = load_info(checkpoint), Checkpoint.load(checkpoint.path).imported
    network, process = _published(info)
    variant = _variant(network, process)
    if process.noise_std != NOISE_STD[variant]:
        logger.warning(
            "the published code draws noise of std %s, this model needs %s: change it there",
            NOISE_STD[variant],
            process.noise_std,
        )
    with torch.device("meta"):
        expected = build_network(network).state_dict()
    content: dict[str, Any] = {}
    for number, (name, kind) in enumerate((("model", "raw"), ("ema", "ema"))):
        content[name] = _weights(checkpoint.path / WEIGHTS_FILES[kind], expected)
        progress(2 + number, total)
    content |= {
        "config": _configuration(info, network, process),
        "epoch": imported.epoch if imported else 0,
        "train_steps": info.step,
    }
    with (
        replacing(path) as temporary,
        temporary.open("wb") as stream,
    ):  # given a path, torch would write its name into the file
        torch.save(content, stream)
    progress(total, total)
    return path


def _weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the published order, still on disk: `load_file` maps them."""
    state = load_file(path)
    with as_input_error():
        check_weights(state, expected, f"They come from {path}; the model is described in {Checkpoint.NAME} beside it.")
    return {key: state[key] for key in expected}


def _published(info: CheckpointInfo) -> tuple[NetworkConfig, Process]:
    """Network and process of a checkpoint, if its family's networks are PRDiT's.

    Raises: InputError: they are not.
    """
    try:
        network = network_config(info.model)
    except ValueError:
        network = None
    if network is None or info.process is None:
        raise InputError(
            f"export-checkpoint writes what the published PRDiT code reads; a {info.of_family.title} (family {info.family!r}) "
            "is not one of its models. It can be used in our format only."
        )
    return network, info.process


def _variant(network: NetworkConfig, process: Process) -> str:
    """Which published model this is.

    Raises: InputError: it has properties without a published counterpart; all are named.
    """
    unpublished = _unpublished(network, process)
    if unpublished:
        raise InputError(
            f"The published code cannot compute this model: it has no {', '.join(unpublished)}. It can be used in our format only."
        )
    if process.prediction == "velocity":
        return "fm"
    if len(network.chain) > 1:
        return "sr"
    return "tf" if network.chain[-1].arithmetic == "tf" else "prdit"


def _unpublished(network: NetworkConfig, process: Process) -> list[str]:
    found: list[str] = []
    *heads, inner = network.chain
    is_flow = process.prediction == "velocity"
    if heads:
        found += _options_of(heads[0])
        if is_flow:
            found.append("refinement of a flow-matching model")
        if len(heads) > 1:
            found.append("chained refinements")
        elif inner.arithmetic == "tf":
            found.append("refinement of a model with arithmetic 'tf'")
    found += _options_of(inner)
    if inner.arithmetic == "tf" and is_flow:
        found.append("flow matching with arithmetic 'tf'")
    if process.prediction == "image":
        found.append("prediction 'image'")
    if process.num_steps != _PUBLISHED_STEPS:
        found.append(f"num_steps {process.num_steps}")
    return list(dict.fromkeys(found))


def _options_of(part: ModelConfig) -> list[str]:
    found = [f"norm {part.norm!r}"] if part.norm != "layer" else []
    found += [f"position {part.position!r}"] if part.position != "table" else []
    found += ["qk_norm"] if part.qk_norm else []
    found += [f"num_classes {part.num_classes}"] if part.num_classes else []
    found += [f"num_values {part.num_values}"] if part.num_values else []
    found += [f"mask_channels {part.mask_channels}"] if part.mask_channels else []
    return found + ([f"in_channels {part.in_channels}"] if part.in_channels != 1 else [])


def _configuration(info: CheckpointInfo, network: NetworkConfig, process: Process) -> dict[str, Any]:
    """`config` of the file: the published code's own keys, and under `prdit` what it does not record."""
    inner = network.chain[-1]
    return {
        "model": _published_name(inner),
        "input_size": inner.volume_size,
        **({"target_size": network.volume_size} if len(network.chain) > 1 else {}),
        "in_channels": inner.in_channels,
        "out_channels": inner.out_channels,
        "num_heads": inner.num_heads,
        OURS: {
            "axes": info.axes,
            "spacing_mm": info.spacing_mm,
            "noise_std": process.noise_std,
            "intensity": asdict(info.window),
            "edge": info.view.edge,
            "centre": list(info.view.centre) if info.view.centre else None,
        },
    }


def _published_name(network: ModelConfig) -> str:
    """`PRDiT-B/12/4` for a registered shape, `PRDiT-custom` for another; `DiT-` marks TF-PRDiT's arithmetic."""
    prefix = "DiT-" if network.arithmetic == "tf" else "PRDiT-"
    options = {"out_channels": network.out_channels, "arithmetic": network.arithmetic}
    for preset in (*preset_names(), *tiling_preset_names()):
        try:
            if preset_config(preset, network.volume_size, **options) == network:
                return prefix + preset
        except ValueError:  # registered, but not for this size
            continue
    return prefix + "custom"
