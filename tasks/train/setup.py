"""Everything a training needs before its first step: checked inputs, module, process, data."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prdit_models.families.family import Family, Training
from prdit_models.plan import Planned, Work
from storage.errors import as_input_error
from storage.snapshots import open_snapshot
from tasks.model.checkpoint import CheckpointInfo, load_state
from tasks.model.compute import pick_device
from tasks.model.memory import Room, training_advice
from tasks.train.check import check_training
from tasks.train.data import ViewDataset
from tasks.train.labels import labels_of
from tasks.train.spec import TrainSpec


@dataclass(frozen=True)
class Validation:
    """Held-out volumes (V, 1, D, H, W) in model range, on the CPU, and their labels (V,)."""

    volumes: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Assembly:
    """The parts of a training.

    Attributes:
        family: what is trained.
        module: on its device, with frozen weights loaded.
        training: settings and process, as the family's methods take them.
        info: description of the checkpoint it makes.
        data: training volumes.
        validation: held-out ones.
        device: where it runs.
        labels: of the training volumes, by index; None without labels.
    """

    family: Family
    module: nn.Module
    training: Training
    info: CheckpointInfo
    data: ViewDataset
    validation: Validation
    device: torch.device
    labels: Tensor | None = None


def advice(spec: TrainSpec, room: Room) -> str:
    """What would fit where this training ran out of memory."""
    config = spec.config
    name = spec.stage.removeprefix("train-")
    info = check_training(spec.snapshot, spec.split, spec.start, config).info
    planned = Planned(
        info.of_family,
        info.model,
        Training(config.settings, info.process, config.lr, config.weight_decay),
        info.view.size,
    )
    work = Work(name, "train", config.precision, config.checkpointing)
    return training_advice(
        planned, f"recipe.{name}", work, room, batch_size=config.batch_size, accumulation=config.accumulation
    )


def assemble(spec: TrainSpec) -> Assembly:
    """Build module, process and data of a training; sets the seed of the initialisation."""
    config = spec.config
    beginning = check_training(spec.snapshot, spec.split, spec.start, config)
    info, family = beginning.info, beginning.info.of_family
    device = pick_device(config)
    torch.manual_seed(config.seed)
    below = load_state(spec.start, config.start_weights) if spec.start else None
    with as_input_error():
        module = family.build(info.model, attention=config.attention, checkpointing=config.checkpointing)
        family.begin(module, config.settings, below)
    family.freeze(module, config.settings)
    store, snapshot = open_snapshot(spec.snapshot)
    ids = {"train": beginning.roles["train"], "val": sorted(beginning.roles["val"])[: config.val_volumes]}
    data = {
        role: ViewDataset(store, names, info.view, info.window, config.cache_mb * (role == "train"), info.axes)
        for role, names in ids.items()
    }
    labels = {}
    if info.label_column:
        labels = {
            role: torch.tensor(labels_of(snapshot, info.label_column, info.label_values, ids[role])) for role in ids
        }
    return Assembly(
        family=family,
        module=module.to(device),
        training=Training(config.settings, info.process, config.lr, config.weight_decay),
        info=info,
        data=data["train"],
        validation=Validation(data["val"].batch(range(len(data["val"]))), labels.get("val")),
        device=device,
        labels=labels.get("train"),
    )
