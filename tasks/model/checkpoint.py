"""A trained model from a checkpoint artifact: safetensors and JSON -> a module in evaluation mode."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import torch
from pydantic import ValidationError

from prdit_models.diffusion.process import Process, process_from_dict
from prdit_models.families.family import FAMILIES, Family
from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks.weights import load_weights
from storage.artifacts import Ref
from storage.checkpoints import WEIGHTS_FILES, load_tensors
from storage.documents.checkpoint import Checkpoint, CoarseMask, Gates, Intensity, Labels, View
from storage.errors import InputError, as_input_error
from tasks.model.conditions import Condition, quoting
from tasks.model.view import ViewConfig


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is, as the objects that a model is built and used with.

    Attributes:
        family: name of the model family.
        model: description of the model, by its family.
        process: the process it was trained with; None for a family without one.
        window: Hounsfield window mapped to the model's range.
        view: box and size of the volumes it was trained on.
        spacing_mm: voxel distance of the training store's level 0.
        step: optimiser steps.
        axes: order of the model's axes: `zyx` as in the store, `xyz` for published LIDC models.
        label_column, label_values: what the model's integer labels mean; empty without labels.
        conditions: numbers and categories that it takes, in the order of its inputs.
        mask: the coarse mask that it is shown; None: none.
    """

    family: str
    model: dict[str, Any]
    process: Process | None
    window: HounsfieldWindow
    view: ViewConfig
    spacing_mm: float
    step: int = 0
    axes: str = "zyx"
    label_column: str = ""
    label_values: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    mask: CoarseMask | None = None

    @classmethod
    def from_document(cls, document: Checkpoint) -> Self:
        """From a checkpoint's description.

        Raises: InputError: process, window or view are not ones that this prdit has.
        """
        labels = document.labels
        return cls(
            family=document.family,
            model=document.model,
            process=None if document.process is None else process_from_dict(document.process),
            window=HounsfieldWindow(**document.intensity.model_dump()),
            view=ViewConfig.model_validate(document.view.model_dump()),
            spacing_mm=document.spacing_mm,
            step=document.step,
            axes=document.axes,
            label_column=labels.column if labels else "",
            label_values=labels.values if labels else (),
            conditions=document.conditions or (),
            mask=document.mask,
        )

    def to_document(self, *, step: int, seed: int, gates: Gates | None) -> Checkpoint:
        """Description of a checkpoint (docs/architecture.md).

        Args:
            step: optimiser steps of the weights.
            seed: of the training.
            gates: the losses that gates compare; None where the weights were not measured.
        """
        return Checkpoint(
            family=self.family,
            model=self.model,
            process=None if self.process is None else self.process.to_dict(),
            intensity=Intensity(**asdict(self.window)),
            view=View(**self.view.model_dump()),
            axes=self.axes,
            spacing_mm=self.spacing_mm,
            step=step,
            seed=seed,
            gates=gates,
            labels=Labels(column=self.label_column, values=self.label_values) if self.label_column else None,
            conditions=self.conditions or None,
            mask=self.mask,
        )

    def at(self, edge: int) -> "CheckpointInfo":
        """The same, for volumes of one of its view's edges.

        Raises: InputError: it was not trained on boxes of this edge.
        """
        if edge not in self.view.edges:
            known = ", ".join(
                f"{each} ({self.view.at(each).voxel_mm(self.spacing_mm):g} mm)" for each in self.view.edges
            )
            raise InputError(
                f"sample.edge is {edge}; this checkpoint was trained on boxes with an edge of {known} level-0 voxels. Choose one "
                "of these, or train with others (view.more_edges)."
            )
        return replace(self, view=self.view.at(edge))

    def label_index(self, value: str) -> int:
        """The integer of a label.

        Raises: InputError: the model does not know it.
        """
        if value not in self.label_values:
            known = f"{self.label_column}: {', '.join(self.label_values)}" if self.label_values else "none"
            raise InputError(
                f"sample.label {value!r} is not a label of this checkpoint; it knows {known}.{quoting(value)}"
            )
        return self.label_values.index(value)

    @property
    def of_family(self) -> Family:
        """The family itself. Raises: InputError: it is not installed."""
        with as_input_error():
            return FAMILIES[self.family]

    @property
    def voxel_mm(self) -> float:
        """Voxel distance of what the model sees and makes, mm."""
        return self.view.voxel_mm(self.spacing_mm)


def differences(one: CheckpointInfo, other: CheckpointInfo) -> dict[str, tuple[Any, Any]]:
    """What two checkpoints differ in besides their weights: values of both by key, such as `model.depth` and `view.size`."""
    here, there = _described(one), _described(other)
    return {key: (here.get(key), there.get(key)) for key in (here | there) if here.get(key) != there.get(key)}


def _described(info: CheckpointInfo) -> dict[str, Any]:
    """What a checkpoint is, flat; the parts of model, process, window and view one by one."""
    process = None if info.process is None else info.process.to_dict()
    nested = {"model": info.model, "process": process, "window": asdict(info.window), "view": info.view.model_dump()}
    parts = {f"{name}.{key}": value for name, values in nested.items() for key, value in (values or {}).items()}
    labels = {"label_column": info.label_column, "label_values": info.label_values, "mask": info.mask}
    # without means and deviations: a training that goes on from another one has those of the first
    conditions = {"conditions": tuple((one.name, getattr(one, "values", "a number")) for one in info.conditions)}
    return {"family": info.family, "spacing_mm": info.spacing_mm, "axes": info.axes} | labels | conditions | parts


def load_info(checkpoint: Ref) -> CheckpointInfo:
    """Family, model, process, window and view of a checkpoint, without its weights.

    Raises:
        StorageError: there is no readable checkpoint at the reference.
        InputError: it describes what this prdit does not have, such as a process of a package that is not installed.
    """
    document = Checkpoint.load(checkpoint.path)
    try:
        return CheckpointInfo.from_document(document)
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{checkpoint.path / Checkpoint.NAME} cannot be used: {reason}") from error


def load_state(checkpoint: Ref, weights: Literal["ema", "raw"]) -> dict[str, torch.Tensor]:
    """One of a checkpoint's two sets of weights.

    Raises: StorageError: the file is missing or unreadable.
    """
    arrays = load_tensors(checkpoint.path / WEIGHTS_FILES[weights])
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def load_model(
    checkpoint: Ref, weights: Literal["ema", "raw"], device: torch.device, *, attention: str = "auto"
) -> tuple[torch.nn.Module, CheckpointInfo]:
    """The model of a checkpoint in evaluation mode, without gradients.

    Args:
        checkpoint: a checkpoint artifact, already verified by hash.
        weights: which of its two sets.
        device: where the model runs.
        attention: backend, see `prdit_models.networks.attention.BACKENDS`.
    Raises:
        StorageError: no checkpoint, or an unreadable file in it.
        InputError: keys or shapes are not this network's, or values not finite; every one is listed.
    """
    info = load_info(checkpoint)
    state = load_state(checkpoint, weights)
    remedy = f"They come from {checkpoint.path / WEIGHTS_FILES[weights]}; the model is described in {Checkpoint.NAME} beside it."
    with as_input_error():
        model = info.of_family.build(info.model, attention=attention)
        load_weights(model, state, remedy)
    return model.to(device).eval().requires_grad_(False), info
