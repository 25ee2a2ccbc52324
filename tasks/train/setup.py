"""Everything a training needs before its first step: checked inputs, module, process, data."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from prdit_models.conditions import Conditions
from prdit_models.families.family import EncodingFamily, Family, HeldOut, Training
from prdit_models.plan import Work, memory_of
from storage.encoded import EncodedVolumes, encoded_folder
from storage.errors import OutOfMemoryError, as_input_error
from storage.snapshots import open_snapshot
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import CheckpointInfo, load_state
from tasks.model.compute import pick_device
from tasks.model.memory import Room, Tried, planned_of, room_of, training_advice
from tasks.train.augmentation import Augmentation
from tasks.train.check import Beginning, check_batch, check_training
from tasks.train.conditions import conditions_of
from tasks.train.config import TrainingConfig
from tasks.train.data import ViewDataset
from tasks.train.encoded import EncodedDataset, Encoder, origin_of
from tasks.train.mask import Masker
from tasks.train.ranks import Ranks, mine
from tasks.train.spec import TrainSpec
from tasks.train.warm_start import continue_from


@dataclass(frozen=True)
class Assembly:
    """The parts of a training on one rank.

    Attributes:
        family: what is trained.
        module: on its device, with frozen weights loaded.
        training: settings and process, as the family's methods take them.
        info: description of the checkpoint it makes.
        data: training volumes, or what the family's encoder makes of them.
        held_out: this rank's share of the validation volumes, of the same kind.
        device: where it runs.
        conditions: of the training volumes at each edge of the view, see `conditions_of`; None where the model takes none.
    """

    family: Family
    module: nn.Module
    training: Training
    info: CheckpointInfo
    data: ViewDataset | EncodedDataset
    held_out: HeldOut
    device: torch.device
    conditions: Conditions | None = None

    def draw(self, turn: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of one volume for the optimiser of this number, see `Family.draw`."""
        shape = (1, *(self.info.view.size,) * 3)
        return self.family.draw(self.family.turns[turn], self.info.model, self.training, shape, generator)


def given(config: TrainingConfig, info: CheckpointInfo) -> Training:
    """Settings and process as the family's methods take them."""
    return Training(config.settings, info.process, config.lr, config.weight_decay)


def check_memory(name: str, info: CheckpointInfo, config: TrainingConfig, ranks: Ranks, device: torch.device) -> None:
    """Refuse, by the arithmetic of `prdit plan`, a training of this name that does not fit this rank's device.

    Raises: OutOfMemoryError: with what would fit.
    """
    room = room_of(device, ranks.local_world)
    planned, work = planned_of(info, given(config, info)), Work("", "train", config.precision, config.checkpointing)
    try:
        needed = memory_of(work, planned, config.batch_size // ranks.world, room.device).total
    except Exception:  # noqa: BLE001  # a family that cannot be planned shows what it needs when it runs
        return
    if needed > room.for_tensors:
        raise OutOfMemoryError(advice(name, info, config, ranks, room, planned_only=True))


def advice(
    name: str, info: CheckpointInfo, config: TrainingConfig, ranks: Ranks, room: Room, *, planned_only: bool = False
) -> str:
    """What would fit where the training of this name does not."""
    return training_advice(
        planned_of(info, given(config, info)),
        f"recipe.{name}",
        Work(name, "train", config.precision, config.checkpointing),
        room,
        Tried(config.batch_size, config.accumulation, ranks.world, planned_only),
    )


def assemble(spec: TrainSpec, ranks: Ranks | None = None, beginning: Beginning | None = None) -> Assembly:
    """Build module, process and data of a training on one rank; sets the seed of the initialisation.

    Args:
        spec: the job.
        ranks: which of the processes this is.
        beginning: what `check_training` found, where it was called already.
    Raises: InputError: it cannot be trained with these inputs, or on so many ranks.
    """
    config, ranks = spec.config, ranks or Ranks()
    beginning = beginning or check_training(spec.snapshot, spec.split, spec.start, config, spec.initial)
    check_batch(config, ranks.world)
    info, family = beginning.info, beginning.info.of_family
    device = pick_device(config, ranks.local_rank, ranks.local_world)
    torch.manual_seed(config.seed)
    below = load_state(spec.start, config.start_weights) if spec.start else None
    with as_input_error():
        module = family.build(info.model, attention=config.attention, checkpointing=config.checkpointing)
        family.begin(module, config.settings, below)
    family.freeze(module, config.settings)
    if spec.initial:
        continue_from(module, spec.initial)
    store, snapshot = open_snapshot(spec.snapshot)
    held_out = sorted(beginning.roles["val"])[: config.val_volumes]
    ids = {"train": beginning.roles["train"], "val": [held_out[place] for place in mine(len(held_out), ranks)]}
    module.to(device)
    encoder = None
    if hasattr(family, "encode"):
        folder = Path(ranks.texts(str(encoded_folder(store.path, spec.directory)))[0])
        encoder = Encoder(
            cast(EncodingFamily, family), module, info, device, EncodedVolumes(folder, origin_of(spec, info, device))
        )
    stored = encoder is not None and not config.changes_volumes  # then volumes are read once, and need no cache
    volumes = _training_data(store, ids["train"], info, config, ranks, 0 if stored else config.cache_mb)
    conditions = {role: conditions_of(info, snapshot, ids[role]) for role in ids}
    known = conditions["val"]
    if known is not None:
        known = known.rows(slice(len(ids["val"])))  # at the first edge
    data: ViewDataset | EncodedDataset = volumes
    seen: ViewDataset | EncodedDataset
    seen = shown = ViewDataset(store, ids["val"], info.view, info.window, 0, info.axes)
    if encoder is not None:
        encoded, seen = encoder.of(volumes, ids["train"], ranks), encoder.of(shown, ids["val"], Ranks())
        encoder.prepare(config.settings, encoded)
        data = encoded if stored else volumes
    held = seen.batch(range(len(seen))) if ids["val"] else torch.empty(0)
    if (masker := Masker.by(info)) is not None:
        known = (known or Conditions())._replace(mask=masker.batch(held))
    return Assembly(
        family=family,
        module=module,
        training=given(config, info),
        info=info,
        data=data,
        held_out=HeldOut(held, mine(len(held_out), ranks), known),
        device=device,
        conditions=conditions["train"],
    )


def _training_data(
    store: VolumeStore,
    volume_ids: list[str],
    info: CheckpointInfo,
    config: TrainingConfig,
    ranks: Ranks,
    cache_mb: int,
) -> ViewDataset:
    """The training volumes, with one cache for all ranks of a machine: that of its first rank."""
    make = partial(
        ViewDataset,
        store,
        volume_ids,
        info.view,
        info.window,
        cache_mb,
        info.axes,
        augmentation=Augmentation(config.augmentation, config.max_shift, len(info.view.edges)),
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
        masker=Masker.by(info),
    )
    own = make() if ranks.local_rank == 0 else None
    addresses = ranks.texts(own.cache_address if own else "")
    return own or make(cache_address=addresses[ranks.rank - ranks.local_rank])
