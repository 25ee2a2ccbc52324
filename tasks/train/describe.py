"""Description of the checkpoint a training will make, from its configuration and the checkpoint it starts from."""

import json
from typing import Any

from prdit_models.diffusion.process import PROCESSES, Process
from prdit_models.families.family import FAMILIES, Given
from prdit_models.intensity import HounsfieldWindow
from storage.documents.checkpoint import Number
from storage.errors import InputError, as_input_error
from tasks.model.checkpoint import CheckpointInfo
from tasks.model.conditions import VOXEL_MM, Condition, width
from tasks.model.view import IntensityConfig, ViewConfig
from tasks.run.settings import settings_of
from tasks.train.config import TrainingConfig
from tasks.train.mask import coarse_mask


def describe(
    config: TrainingConfig,
    start: CheckpointInfo | None,
    spacing_mm: float,
    label_values: tuple[str, ...] = (),
    conditions: tuple[Condition, ...] = (),
) -> CheckpointInfo:
    """Family, model, process, window and view of the checkpoint a training makes.

    Args:
        config: of the training.
        start: the checkpoint it starts from; None for training from scratch.
        spacing_mm: voxel distance of the store's level 0.
        label_values: values of its label column; empty without labels.
        conditions: encodings of its conditions; empty without.
    Raises: InputError: settings, process, view or start do not fit together.
    """
    with as_input_error():
        family = FAMILIES[config.family]
    if start is None:
        intensity = config.intensity or IntensityConfig()
        axes = "zyx"
        with as_input_error():
            window = HounsfieldWindow.of_mapping(**intensity.model_dump())
    else:
        _check_offer(config, start)
        window, axes = start.window, start.axes
    view = view_of(config, start)
    _check_edges(config, view, window)
    process = _process(config, start)
    mask = coarse_mask(config.mask, window, axes, view.voxel_mm(spacing_mm)) if config.mask else None
    given = Given(
        size=view.size,
        voxel_mm=view.voxel_mm(spacing_mm),
        process=process,
        num_classes=len(label_values),
        num_values=width(conditions),
        mask_channels=len(mask.channels) if mask else 0,
        mask_cell=mask.cell if mask else 0,
        several_grids=bool(view.more_edges),
        start=None if start is None else start.model,
    )
    with as_input_error():
        model = family.describe(config.settings, given)
    return CheckpointInfo(
        family=config.family,
        model=_as_json(config.family, model),
        process=process,
        window=window,
        view=view,
        spacing_mm=spacing_mm,
        axes=axes,
        label_column=config.label_column or "",
        label_values=label_values,
        conditions=conditions,
        mask=mask,
    )


def view_of(config: TrainingConfig, start: CheckpointInfo | None) -> ViewConfig:
    """What a training sees of a volume: its own, or that of the training it starts from, perhaps a level finer.

    Raises: InputError: there is no finer level.
    """
    if start is None:
        return config.view or ViewConfig()
    return _view_above(start.view, FAMILIES[config.family].scale)


def expected_conditions(config: TrainingConfig) -> tuple[Condition, ...]:
    """Conditions of a training whose volumes are not known yet: those that it names, with placeholders."""
    return tuple(Number(name=name, mean=0.0, std=1.0) for name in config.conditions)


def _check_edges(config: TrainingConfig, view: ViewConfig, window: HounsfieldWindow) -> None:
    """Refuse boxes of several edges where nothing can tell which of them a volume is."""
    if not view.more_edges:
        return
    edges = ", ".join(map(str, view.edges))
    if window.follows_scan:
        raise InputError(
            f"view.more_edges is set, and intensity.mapping {window.mapping!r}, which scales each scan by what its one box shows. "
            "Use the mapping 'window', or leave view.more_edges out."
        )
    is_never_sampled = FAMILIES[config.family].offers == "local denoiser"
    if VOXEL_MM not in config.conditions and not is_never_sampled:
        raise InputError(
            f"This training sees boxes of several edges ({edges} level-0 voxels), and nothing tells the model which, so that its "
            f"samples would have no voxel distance. Name {VOXEL_MM} in its conditions, which a global transformer takes, or leave "
            "out view.more_edges."
        )


def _as_json(family: str, description: Any) -> dict[str, Any]:
    """A family's description as a checkpoint will hold it."""
    try:
        stored = json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        stored, reason = None, str(error)
    else:
        reason = f"got {type(description).__name__}"
    if not isinstance(stored, dict):
        raise InputError(f"family {family!r} describes its model by something that is no JSON object ({reason}).")
    return stored


def _check_offer(config: TrainingConfig, start: CheckpointInfo) -> None:
    family, offered = FAMILIES[config.family], start.of_family.offers
    if offered != family.needs:
        raise InputError(
            f"family {config.family!r} starts from a {family.needs}, got a {start.of_family.title} (family {start.family!r}, "
            f"which offers {'a ' + offered if offered else 'nothing to start from'})."
        )


def _view_above(below: ViewConfig, scale: int) -> ViewConfig:
    size = scale * below.size
    if below.edge % size:
        raise InputError(
            f"The model below sees {below.edge} voxels as {below.size}; one level up is {size}, which does not divide "
            f"{below.edge}. There is no finer level to refine to."
        )
    return below.model_copy(update={"size": size})


def _process(config: TrainingConfig, start: CheckpointInfo | None) -> Process | None:
    """Its own, else that of the training it starts from, else the family's default; None for a family without one."""
    processes = FAMILIES[config.family].processes
    inherited = start.process if start else None
    own: Process | None = config.process
    if own is not None and inherited is not None and own != inherited:
        raise InputError(
            f"process {own.to_dict()} differs from that of the training it starts from, {inherited.to_dict()}; leave it out "
            "here, or use the same."
        )
    if not processes:
        return None
    process = own or inherited or settings_of(PROCESSES[processes[0]], {}, "process")
    if process.name not in processes:
        raise InputError(
            f"family {config.family!r} works with the process {' or '.join(processes)}, not with {process.name!r} of the "
            "training it starts from."
        )
    return process
