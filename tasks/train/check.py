"""Checks before a training starts, and what it starts with."""

from collections.abc import Sequence
from dataclasses import dataclass

from storage.artifacts import Ref
from storage.documents.snapshot import Snapshot
from storage.documents.split import Split
from storage.errors import InputError
from storage.snapshots import open_snapshot
from tasks.model.checkpoint import CheckpointInfo, load_info
from tasks.model.conditions import Condition
from tasks.model.data import check_split
from tasks.model.view import ViewConfig
from tasks.train.conditions import measured
from tasks.train.config import TrainingConfig
from tasks.train.describe import describe, view_of
from tasks.train.labels import label_values
from tasks.train.warm_start import check_initial

_SAME_MM = 1e-6


@dataclass(frozen=True)
class Beginning:
    """What a training starts with, found by its checks.

    Attributes:
        roles: volume ids by role.
        info: description of the checkpoint it will make.
    """

    roles: dict[str, list[str]]
    info: CheckpointInfo


def check_training(
    snapshot: Ref, split: Ref, start: Ref | None, config: TrainingConfig, initial: Ref | None = None
) -> Beginning:
    """Refuse a training that cannot work, before anything starts; return what it starts with.

    Args:
        snapshot, split: what it trains on.
        start: checkpoint it starts from; None for training from scratch.
        config: of the training.
        initial: checkpoint of an earlier training like this one, with whose weights it begins; None: with fresh ones.
    Raises: InputError: an empty role, settings that do not fit the volume size or each other, a checkpoint it cannot start from, or
        not continue.
    """
    document = Split.load(split.path)
    roles = document.roles
    sizes = ", ".join(f"{name}: {len(ids)}" for name, ids in roles.items())
    for role in ("train", "val"):
        if not roles.get(role):
            raise InputError(
                f"The split at {split.uri} has no volume in role {role!r} ({sizes}). "
                "Training needs at least two patients, one to train on and one to validate on: ingest more scans."
            )
    if config.start is not None and (start is None or start.kind != "checkpoint"):
        raise InputError(
            f"This training starts from the checkpoint of {config.start!r}, got {start.kind if start else 'none'}. Run "
            f"`prdit train {config.start}` first."
        )
    below = load_info(start) if start else None
    store, listed = open_snapshot(snapshot)
    check_split(listed, document, split)
    if below and abs(store.spacing_mm - below.spacing_mm) > _SAME_MM:
        raise InputError(
            f"The store at {store.path} has {store.spacing_mm} mm voxels, the checkpoint below was trained at "
            f"{below.spacing_mm} mm: the same view would cover a box of another size in mm. Ingest into a store of that spacing "
            "(ingest.spacing_mm)."
        )
    values, encodings = _columns(listed, roles["train"], config, view_of(config, below), initial)
    info = describe(config, below, store.spacing_mm, values, encodings)
    if initial is not None:
        check_initial(initial, info)
    return Beginning(roles, info)


def columns_of(
    snapshot: Ref, split: Ref, config: TrainingConfig, view: ViewConfig, initial: Ref | None = None
) -> tuple[tuple[str, ...], tuple[Condition, ...]]:
    """Values of the label column, and encodings of the conditions, that a training will have.

    Args:
        snapshot, split: what it will train on.
        config: of the training.
        view: that it will inherit or have.
        initial: checkpoint of an earlier training like this one, with whose weights it will begin.
    Raises: InputError: the training volumes do not have them, or they do not vary.
    """
    if not (config.label_column or config.conditions):
        return (), ()
    listed = open_snapshot(snapshot)[1]
    return _columns(listed, Split.load(split.path).roles.get("train", []), config, view, initial)


def _columns(
    listed: Snapshot, train: Sequence[str], config: TrainingConfig, view: ViewConfig, initial: Ref | None
) -> tuple[tuple[str, ...], tuple[Condition, ...]]:
    """See `columns_of`."""
    values = label_values(listed, config.label_column, train) if config.label_column else ()
    if not config.conditions:
        return values, ()
    return values, _continued(config, initial) or measured(listed, config.conditions, train, view)


def _continued(config: TrainingConfig, initial: Ref | None) -> tuple[Condition, ...]:
    """Encodings of the training whose weights this one begins with: they belong to these. Empty where it has others, or none."""
    if initial is None or initial.kind != "checkpoint":
        return ()
    known = load_info(initial).conditions
    return known if tuple(one.name for one in known) == config.conditions else ()


def check_batch(config: TrainingConfig, world: int) -> None:
    """Refuse a batch that a number of ranks cannot share.

    Raises: InputError.
    """
    if config.batch_size % world:
        raise InputError(
            f"batch_size {config.batch_size} cannot be shared by {world} ranks: it counts the volumes of all of them. Choose a "
            f"multiple of {world}, or as many ranks as divide {config.batch_size} (launcher.nodes x launcher.ranks_per_node; "
            "with launcher.min_nodes, of every number of nodes from there on)."
        )
