"""What a training is at one moment, as named arrays and numbers, and back."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from storage.checkpoints import Tensors
from tasks.train.stepper import Values

RECENT = 50  # steps whose mean is "the last loss"
_NO_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass
class Progress:
    """Where a training stands; every rank has the same.

    Attributes:
        step: of the loop.
        updates: optimiser steps taken: skipped ones do not count (SPEC §4).
        first_loss: of the first step.
        recent: training losses of the last steps.
        window: values of the steps since the last logged point.
        rewinds: how often it went back to an earlier state; the order of its data depends on it.
        skipped: steps of an optimiser that were skipped, in all.
        skipped_in_a_row: the same since its last step, by turn.
        seconds: of the steps so far, with their data and without what stands between them.
    """

    step: int = 0
    updates: int = 0
    first_loss: float | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    window: list[Values] = field(default_factory=list)
    rewinds: int = 0
    skipped: int = 0
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def last_loss(self) -> float | None:
        """Mean of the last losses."""
        return sum(self.recent) / len(self.recent) if self.recent else None

    def note(self, loss: float) -> None:
        """Remember the loss of a step that was taken."""
        if math.isfinite(loss):
            self.first_loss = loss if self.first_loss is None else self.first_loss
            self.recent.append(loss)


class TrainedArrays:
    """Parameters, their average, buffers and optimisers of a training as arrays.

    Args:
        module: what is trained.
        optimizers: by turn.

    Attributes:
        parameters: that are trained, by name.
        ema: their average.
    """

    def __init__(self, module: nn.Module, optimizers: dict[str, torch.optim.Optimizer]) -> None:
        self.module = module
        self.optimizers = optimizers
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Entries of the state dict that are not parameters, such as running statistics."""
        parameters = dict(self.module.named_parameters())
        return {name: value for name, value in self.module.state_dict().items() if name not in parameters}

    def replicated(self) -> dict[str, Tensor]:
        """Everything that must be the same on every rank."""
        moments = {name: value for name, value in self._moments().items() if isinstance(value, Tensor)}
        return {
            **self.parameters,
            **{f"ema {name}": value for name, value in self.ema.items()},
            **{f"optimizer {name}": value for name, value in moments.items()},
        }

    def groups(self) -> dict[str, Tensors]:
        """Copies, as groups of a resume state."""
        moments = {key: torch.as_tensor(value) for key, value in self._moments().items()}
        return {
            "model": arrays(self.parameters),
            "ema": arrays(self.ema),
            "optimizer": arrays(moments),
            "buffers": arrays(self.buffers),
        }

    @torch.no_grad()
    def restore(self, groups: dict[str, Tensors], device: torch.device) -> None:
        """Load a resume state."""
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.from_numpy(groups["model"][name]))
            self.ema[name].copy_(torch.from_numpy(groups["ema"][name]))
        for name, buffer in self.buffers.items():
            buffer.copy_(torch.from_numpy(groups["buffers"][name]))
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        for key, value in groups["optimizer"].items():
            turn, slot, name = key.split(":", 2)
            tensor = torch.from_numpy(value).clone()
            # AdamW's fused step takes its count from the device of the parameter
            self.optimizers[turn].state[self.parameters[name]][slot] = tensor.to(device)

    def swap(self) -> None:
        """Exchange the parameters with their average: storages are swapped, nothing is copied."""
        for name, parameter in self.parameters.items():
            parameter.data, self.ema[name] = self.ema[name], parameter.data

    def whole(self, trained: Tensors) -> Tensors:
        """All entries of the state dict, with these values of the trained parameters under every name a shared one has."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        every = self.module.named_parameters(remove_duplicate=False)
        shared = {name: names[id(parameter)] for name, parameter in every if id(parameter) in names}
        return arrays(self.module.state_dict()) | trained | {name: trained[first] for name, first in shared.items()}

    def _moments(self) -> dict[str, Any]:
        names: dict[Any, str] = {parameter: name for name, parameter in self.parameters.items()}
        return {
            f"{turn}:{slot}:{names[parameter]}": value
            for turn, optimizer in self.optimizers.items()
            for parameter, slots in optimizer.state.items()
            for slot, value in slots.items()
            if value is not None
        }


def arrays(tensors: dict[str, Any]) -> Tensors:
    """Copies as NumPy arrays, in their own type where NumPy has it."""
    parts = {name: tensor.detach() for name, tensor in tensors.items()}
    parts = {name: part.float() if part.dtype in _NO_NUMPY else part for name, part in parts.items()}
    return {name: part.to("cpu", copy=True).numpy() for name, part in parts.items()}
