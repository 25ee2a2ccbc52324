"""What is asked of a checkpoint's model: the voxel distance of its volumes, a label, numbers and categories, a mask."""

from typing import Any

import torch

from prdit_models.conditions import Conditions
from prdit_models.families.family import Request
from storage.errors import InputError
from tasks.model.checkpoint import CheckpointInfo
from tasks.model.conditions import VOXEL_MM, as_number, check_asked, encoded
from tasks.sample.config import SampleConfig
from tasks.sample.mask import SampleMask

_SAME_MM = 1e-3  # voxel distances that differ by less, relative to them, are the same


def asked_grid(info: CheckpointInfo, config: SampleConfig) -> CheckpointInfo:
    """The checkpoint, for volumes of the edge that is asked for: by `sample.edge`, or by the condition `voxel_mm`.

    Raises: InputError: it was not trained on boxes of that edge, or both name different ones.
    """
    edge, voxel_mm = config.edge, as_number(config.conditions.get(VOXEL_MM))
    if voxel_mm is not None and any(one.name == VOXEL_MM for one in info.conditions):
        distances = {each: info.view.at(each).voxel_mm(info.spacing_mm) for each in info.view.edges}
        fitting = [each for each, mm in distances.items() if abs(mm - voxel_mm) <= _SAME_MM * mm]
        if not fitting or edge not in (None, *fitting):
            known = ", ".join(f"{mm:g} (edge {each})" for each, mm in distances.items())
            beside = f", and sample.edge {edge}" if edge is not None else ""
            raise InputError(
                f"sample.conditions.{VOXEL_MM} is {voxel_mm:g}{beside}; this checkpoint makes volumes of {known} mm. Choose one of "
                "these, or name the edge alone (sample.edge)."
            )
        (edge,) = fitting
    return info.at(info.view.edge if edge is None else edge)


def asked_values(info: CheckpointInfo, config: SampleConfig) -> dict[str, Any]:
    """Numbers and categories that are asked for, by name; the voxel distance among them wherever the model takes it.

    Args:
        info: of the checkpoint, as `asked_grid` gave it.
        config: what is asked for.
    """
    takes_voxel_mm = any(one.name == VOXEL_MM for one in info.conditions)
    return config.conditions | ({VOXEL_MM: info.voxel_mm} if takes_voxel_mm else {})


def warnings_on(info: CheckpointInfo, config: SampleConfig) -> list[str]:
    """Sentences on values far from those of the training. Raises: InputError: see `check_asked`."""
    return check_asked(info.conditions, asked_values(info, config)) if info.conditions else []


def request(info: CheckpointInfo, config: SampleConfig, mask: SampleMask | None = None) -> Request:
    """What a configuration asks of a checkpoint's model.

    Args:
        info: of the checkpoint, as `asked_grid` gave it.
        config: what is asked for.
        mask: that it asks for, see `sample_mask`.
    Raises: InputError: the model does not know the label or a condition.
    """
    labels = values = None  # of a model without labels or conditions, its family says why it cannot have them
    if config.label is not None:
        labels = torch.tensor([info.label_index(config.label) if info.label_values else 0])
    if asked := asked_values(info, config):
        warnings_on(info, config)
        values = torch.tensor([encoded(info.conditions, asked)])
    return _request(config, Conditions(labels, values, None if mask is None else mask.tensor))


def expected_request(info: CheckpointInfo, config: SampleConfig) -> Request:
    """What a configuration will ask of a model that is not trained yet: which conditions, not which values of them.

    Args:
        info: of the checkpoint that will be, with placeholders for what only the training volumes tell.
        config: what will be asked for.
    Raises: InputError: the model will not know a condition, or not make volumes of the edge.
    """
    seen = asked_grid(info, config)
    names = [one.name for one in info.conditions]
    if info.conditions and (unknown := sorted(set(config.conditions) - set(names))):
        raise InputError(
            f"sample.conditions names {', '.join(unknown)}, which the training will not know; it names {', '.join(names)} "
            "(conditions)."
        )
    asked = asked_values(seen, config)
    placeholders = Conditions(
        None if config.label is None else torch.zeros(1, dtype=torch.long),
        torch.zeros(1, len(asked)) if asked else None,
        torch.zeros(1) if config.masked else None,
    )
    return _request(config, placeholders)


def _request(config: SampleConfig, conditions: Conditions) -> Request:
    asked = any(part is not None for part in conditions)
    return Request(config.as_sampler(), config.output, conditions if asked else None, config.guidance_scale)
