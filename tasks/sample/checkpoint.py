"""A trained model from a checkpoint artifact: safetensors and JSON in, a network ready to run out."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from prdit_models.diffusion.cosine import CosineProcess, process_from_dict
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks.build import Network, build_network
from prdit_models.networks.config import NetworkConfig, network_config
from prdit_models.networks.weights import load_weights
from storage.artifacts import Ref
from storage.checkpoints import WEIGHTS_FILES, load_checkpoint_info, load_tensors
from tasks.train.config import ViewConfig


@dataclass(frozen=True)
class CheckpointInfo:
    """What `checkpoint.json` says, typed.

    Attributes:
        kind: `checkpoint-local`, `checkpoint-global` or `checkpoint-refiner`.
        model: shape of the network, or of the cascade.
        process: the process it was trained with.
        window: Hounsfield window mapped to the model's range.
        view: box and size of the volumes it was trained on.
        spacing_mm: voxel distance of the training store's level 0.
        step: optimiser steps.
        axes: order of the model's axes: `zyx` as everything here, `xyz` for published LIDC models.
        label_column, label_values: what the model's integer labels mean; empty without labels.
    """

    kind: str
    model: NetworkConfig
    process: CosineProcess | FlowProcess
    window: HounsfieldWindow
    view: ViewConfig
    spacing_mm: float
    step: int
    axes: str = "zyx"
    label_column: str = ""
    label_values: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, info: dict[str, Any]) -> Self:
        """From the content of `checkpoint.json`."""
        return cls(
            kind=info["kind"],
            model=network_config(info["model"]),
            process=process_from_dict(info["process"]),
            window=HounsfieldWindow(**info["intensity"]),
            view=ViewConfig.model_validate(info["view"]),
            spacing_mm=float(info["spacing_mm"]),
            step=int(info["step"]),
            axes=info.get("axes", "zyx"),
            label_column=info.get("labels", {}).get("column", ""),
            label_values=tuple(info.get("labels", {}).get("values", ())),
        )

    def label_index(self, value: str) -> int:
        """The integer of a label.

        Raises: ValueError: the model does not know it.
        """
        if value not in self.label_values:
            known = f"{self.label_column}: {', '.join(self.label_values)}" if self.label_values else "none"
            raise ValueError(f"sample.label {value!r} is not a label of this checkpoint; it knows {known}.")
        return self.label_values.index(value)

    @property
    def voxel_mm(self) -> float:
        """Voxel distance of what the model sees and makes, mm."""
        return self.view.voxel_mm(self.spacing_mm)


def load_info(checkpoint: Ref) -> CheckpointInfo:
    """Shape, process, window and view of a checkpoint, without its weights.

    Raises: StorageError: there is no readable checkpoint at the reference.
    """
    return CheckpointInfo.from_json(load_checkpoint_info(checkpoint))


def load_model(
    checkpoint: Ref, weights: Literal["ema", "raw"], device: torch.device, *, attention: str = "auto"
) -> tuple[Network, CheckpointInfo]:
    """The model of a checkpoint in evaluation mode, without gradients.

    Args:
        checkpoint: a checkpoint artifact, already verified by hash.
        weights: which of its two sets.
        device: where the model runs.
        attention: backend, see `prdit_models.networks.attention.BACKENDS`.
    Raises:
        StorageError: no checkpoint, or an unreadable file in it.
        ValueError: keys or shapes are not this network's, or values not finite; every one is listed.
    """
    info = load_info(checkpoint)
    path = checkpoint.path / WEIGHTS_FILES[weights]
    state = {key: torch.from_numpy(value) for key, value in load_tensors(path).items()}
    model = build_network(info.model, attention=attention)
    load_weights(model, state, f"They come from {path}; the model is described in checkpoint.json beside it.")
    return model.to(device).eval().requires_grad_(False), info
