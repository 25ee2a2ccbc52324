"""Sizes of a row's trainings before they run: parameters, arithmetic, memory; and what its families deviate in."""

import logging
from collections.abc import Mapping
from inspect import signature
from typing import Any

from prdit_models.plan import Planned, Work, count_flops, count_parameters, memory_of
from storage.documents.benchmark import PlannedTraining
from storage.errors import InputError
from tasks.model.checkpoint import CheckpointInfo
from tasks.train.config import TrainingConfig
from tasks.train.setup import given

logger = logging.getLogger("prdit.benchmark")


def planned_training(
    name: str, config: TrainingConfig, info: CheckpointInfo, *, counted: bool = True
) -> PlannedTraining:
    """Size of one training; its module is built without memory, so one that cannot be built is refused here.

    Args:
        name: in its recipe.
        config: its settings.
        info: description of the checkpoint it makes.
        counted: whether arithmetic and memory are counted too, which takes seconds.
    Raises: InputError: the module cannot be built: an optional package is missing, a size that does not fit.
    """
    planned = Planned(info.of_family, info.model, given(config, info), info.view.size)
    try:
        parameters = count_parameters(planned)
    except (ImportError, ValueError) as error:
        raise InputError(f"recipe.{name} (family {config.family!r}): {error}") from error
    return PlannedTraining(
        name=name,
        family=config.family,
        title=info.of_family.title,
        process=info.process.name if info.process else "",
        parameters=parameters["all"],
        trainable=parameters["trainable"],
        flops_per_volume=_flops(planned, name) if counted else None,
        memory_bytes=_memory(planned, name, config) if counted else {},
        batch_size=config.batch_size * config.accumulation,
    )


def _flops(planned: Planned, name: str) -> int | None:
    try:
        return count_flops(planned, 1, training=True)
    except Exception:  # a family may do what a plan cannot follow; the table shows a dash
        logger.info("the operations of %s cannot be counted", name, exc_info=True)
        return None


def _memory(planned: Planned, name: str, config: TrainingConfig) -> dict[str, int]:
    work = Work(name, "train", config.precision, config.checkpointing)
    try:
        return {device: memory_of(work, planned, config.batch_size, device).total for device in ("cpu", "cuda")}
    except Exception:  # as above
        logger.info("the memory of %s cannot be counted", name, exc_info=True)
        return {}


def deviations_of(trainings: Mapping[str, TrainingConfig], infos: Mapping[str, CheckpointInfo]) -> tuple[str, ...]:
    """Sentences of the families about what they have otherwise than published, each once, in the order of the trainings.

    A family says it as `deviations`: sentences, or a function that returns them and takes what it needs of `settings`,
    `description` and `process`.
    """
    found: dict[str, None] = {}
    for name, config in trainings.items():
        info = infos[name]
        said: Any = getattr(info.of_family, "deviations", ())
        if callable(said):
            known = {"settings": config.settings, "description": info.model, "process": info.process}
            said = said(**{each: known[each] for each in signature(said).parameters if each in known})
        found |= dict.fromkeys(said)
    return tuple(found)
