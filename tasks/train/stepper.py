"""One optimiser step over all ranks: losses, backward, clipping, and what is skipped."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from prdit_models.conditions import Conditions
from prdit_models.families.family import Batch, Family, Losses
from prdit_models.families.family import Training as Given
from prdit_models.learning_rate import decay_factor, warmup_factor
from prdit_models.networks.compilation import CompiledNetwork
from storage.errors import InputError
from tasks.model.compute import autocast
from tasks.train.config import TrainingConfig
from tasks.train.loader import Loaded
from tasks.train.ranks import Ranks
from tasks.train.setup import Assembly

_MAX_LOSS = 1e5  # SPEC §4: above it a step is skipped
Values = dict[str, float]


class Stepper:
    """The optimisers of a training and how they step.

    Args:
        assembly: what is trained.
        config: of the training.
        ranks: which of the processes this is.

    Attributes:
        optimizers: by turn, in the order in which they step.
        losses: the family's losses of this rank's batch.
    """

    def __init__(self, assembly: Assembly, config: TrainingConfig, ranks: Ranks) -> None:
        self.assembly = assembly
        self.config = config
        self.ranks = ranks
        self.optimizers = _optimizers(assembly)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        module = assembly.module
        network: Any = CompiledNetwork(module) if config.compile else module
        self.losses = _Losses(assembly.family, module, network, assembly.training)
        # Not all of it may take part in a turn. Without this search DDP would also lay out its buckets again after the first
        # step, so that a resumed training would add gradients in another order, and get other bits.
        self._over_ranks: nn.Module = self.losses
        if ranks.world > 1:
            self._over_ranks = DistributedDataParallel(
                self.losses, find_unused_parameters=True, gradient_as_bucket_view=True
            )

    def step(self, number: int, turn: str, batches: Sequence[Loaded], spike: float) -> Values | None:
        """One step of one optimiser, agreed on by all ranks.

        Args:
            number: of the training's step, from 1.
            turn: which optimiser.
            batches: this rank's batches of the step, one for each accumulated part.
            spike: a loss above it is skipped.
        Returns: means over all ranks of the losses, and the gradient's norm; empty where the family makes no step; None where it
            was skipped because a loss or the gradient was not finite, or too large.
        Raises: InputError: the family makes a step with some of the batches only.
        """
        config, optimizer = self.config, self.optimizers[turn]
        self.assembly.module.zero_grad(set_to_none=True)
        sums: Values = {}
        bad = False
        for part, loaded in enumerate(batches):
            with self._synchronised(part == config.accumulation - 1):
                losses = self.evaluate(number, part, turn, loaded)
                if losses is None and part:
                    raise InputError(
                        f"Family {self.assembly.info.family!r} makes no step of its turn {turn!r} with part {part + 1} of the "
                        "batches that accumulation adds up, but did with those before; it must be the same for all of them. Set "
                        "accumulation: 1, or have the family count steps instead of calls."
                    )
                if losses is None:
                    return {}
                values = {name: float(value.detach()) for name, value in losses.items()}
                bad = bad or not math.isfinite(values["loss"]) or values["loss"] > min(_MAX_LOSS, spike)
                (losses["loss"] / config.accumulation).backward()
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        bad = bad or not bool(torch.isfinite(norm))  # clipping by a non-finite norm would write NaN into every weight
        *totals, worst = self.ranks.total([*sums.values(), float(bad)])
        parts = config.accumulation * self.ranks.world
        means = {name: total / parts for name, total in zip(sums, totals, strict=True)} | {"grad_norm": float(norm)}
        if worst:
            return None
        self._set_rate(number - 1)
        optimizer.step()
        return means

    def evaluate(self, number: int, part: int, turn: str, loaded: Loaded) -> Losses | None:
        """The family's losses of this rank's batch.

        Args:
            number: of the training's step, from 1.
            part: of the accumulated ones, from 0.
            turn: which optimiser steps.
            loaded: the batch.
        Raises: InputError: there is no `loss` among them.
        """
        assembly, config = self.assembly, self.config
        place = list(self.optimizers).index(turn)
        device = assembly.device
        known = assembly.conditions
        if known is not None:
            known = known.rows(loaded.edges * len(assembly.data) + torch.tensor(loaded.indices))
        if loaded.masks is not None:
            known = (known or Conditions())._replace(mask=loaded.masks)
        batch = Batch(
            loaded.volumes.to(device, non_blocking=True),
            {name: value.to(device, non_blocking=True) for name, value in loaded.draws[place].items()},
            None if known is None else known.to(device),
            no_label=len(assembly.info.label_values),
            condition_dropout=config.label_dropout,
        )
        # for a family with dropout
        torch.manual_seed(hash((config.seed, number, part, place, self.ranks.rank)) % 2**63)
        with autocast(device, config.precision):
            found: Losses | None = self._over_ranks(turn, batch)
        if found is not None and "loss" not in found:
            raise InputError(
                f"Family {assembly.info.family!r} gave {sorted(found)} for its turn {turn!r}; what it minimises must be there "
                "as 'loss'."
            )
        return found

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Gradients of all ranks are added up with the last part of a step alone."""
        network = self._over_ranks
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()

    def _set_rate(self, step: int) -> None:
        config = self.config
        factor = warmup_factor(step, config.lr_warmup)
        factor *= decay_factor(step, config.steps, config.lr_decay, config.lr_shape)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]


class _Losses(nn.Module):
    """A family's losses as one module, so that whatever a family does with its networks goes through DDP once."""

    def __init__(self, family: Family, module: nn.Module, network: Any, training: Given) -> None:
        super().__init__()
        self.module = module
        self.network: Callable[..., Any]
        self.__dict__["network"] = network  # not a second submodule
        self._family, self._training = family, training

    def forward(self, turn: str, batch: Batch) -> Losses | None:
        return self._family.losses(turn, self.network, batch, self._training)


def _optimizers(assembly: Assembly) -> dict[str, torch.optim.Optimizer]:
    """The family's optimisers in the order of its turns.

    Raises: InputError: they are not one per turn, or share parameters, or have one that is not trained.
    """
    made, turns = assembly.family.optimizers(assembly.module, assembly.training), assembly.family.turns
    if set(made) != set(turns):
        raise InputError(
            f"Family {assembly.info.family!r} gave optimisers {sorted(made)} for its turns {sorted(turns)}; each needs one."
        )
    stepped = [id(p) for o in made.values() for group in o.param_groups for p in group["params"]]
    known = {id(p) for p in assembly.module.parameters() if p.requires_grad}
    if len(stepped) != len(set(stepped)) or not set(stepped) <= known:
        raise InputError(
            f"The optimisers of family {assembly.info.family!r} share a parameter, or have one that is not trained (frozen or "
            "of another module); each trained parameter belongs to one of them at most."
        )
    return {turn: made[turn] for turn in turns}
