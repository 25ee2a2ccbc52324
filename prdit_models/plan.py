"""What a training or sampling needs before it is started: parameters, arithmetic and memory of every stage.

The network, its loss and its backward pass themselves run, on PyTorch's fake tensors, which have shapes and no memory, and what
they keep is counted, so that the numbers follow the code. Left out: the process itself (Python and PyTorch, 0.3 GiB) and
the scans.
"""

import bisect
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.process import Process
from prdit_models.diffusion.sampler import Sampler
from prdit_models.families.family import FAMILIES, Batch, Family, Request, Training, family_of, first_drawing
from prdit_models.networks.config import NetworkConfig
from prdit_models.networks.prdit import trainable_parameters
from prdit_models.tracing import MemoryTrace

PRECISIONS = ("fp32", "bf16")
GIB = 2**30
GPU_SIZES_GIB = (8, 16, 24, 40, 80)
GPU_CONTEXT_BYTES = 600 * 2**20  # CUDA context, kernels and cuBLAS workspaces
# What an allocator holds above tensors, as a share of gradients, moments and activations kept for the backward pass, and of
# activations that come and go (sampling, checkpointing). Of glibc: measured, docs/benchmarks.md (gaps between blocks freed in
# another order than they were made). Of PyTorch's caching CUDA allocator: an assumption.
ALLOCATOR_SHARES = {"cpu": (0.2, 0.6), "cuda": (0.1, 0.1)}
_TRACED_BATCHES = (2, 3)  # a batch of 1 may be a view where others are copies
_SAMPLER_VOLUMES = 6  # states, estimates, noise
_GUIDE_VOLUMES = 2  # residual or its adjoint, and the step
_LARGEST_BATCH = 2**20


# -- what is planned ---


@dataclass(frozen=True, eq=False)
class Planned:
    """One training of a recipe, as far as its size is concerned.

    Attributes:
        family: what is trained.
        description: of its model, by the family.
        training: settings and process.
        size: edge of its volumes in voxels.
    """

    family: Family
    description: Mapping[str, Any]
    training: Training
    size: int

    def build(self, *, attention: str, checkpointing: bool = False) -> Any:
        """The module as its training starts, without the values of weights."""
        module = self.family.build(self.description, attention=attention, checkpointing=checkpointing)
        self.family.freeze(module, self.training.settings)
        return module

    def volumes(self, batch: int) -> Tensor:
        """A batch of volumes without values."""
        return torch.empty(batch, 1, self.size, self.size, self.size)

    def shown(self, batch: int) -> Tensor:
        """What a training is shown of a batch, without values: the volumes, or what the family stores of them."""
        of_encoded = getattr(self.family, "encoded_shape", None)
        return torch.empty(batch, *of_encoded(self.description)) if of_encoded else self.volumes(batch)

    def losses(self, module: nn.Module, batch: int) -> Iterator[Tensor]:
        """The loss of every optimiser that steps on a batch, as the training computes it: each when it is asked for."""
        process = self.training.process
        stand_in: Any = process and _WithoutValues(process)
        training = replace(self.training, process=stand_in)
        shown, generator = self.shown(batch), torch.Generator()
        for turn in self.family.turns:
            drawn = self.family.draw(turn, self.description, training, (1, *(self.size,) * 3), generator)
            draws = {name: torch.empty((batch, *one.shape), dtype=one.dtype) for name, one in drawn.items()}
            losses = self.family.losses(turn, module, Batch(shown, draws), training)
            if losses is not None:
                yield losses.pop("loss")


class _WithoutValues:
    """A process whose draws and checks need no values of tensors; shapes, types and losses are the process's own."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def draw_times(self, batch: int, *_: Any, **__: Any) -> Tensor:
        """As the process's, see `Process.draw_times`."""
        return torch.empty((batch,), dtype=next(iter(self._process.validation_times().values())).dtype)

    def noise(self, shape: tuple[int, ...], *_: Any) -> Tensor:
        """As the process's."""
        return torch.empty(shape)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """As the process's: a weighted sum of both."""
        share = t.float().view(-1, 1, 1, 1, 1)
        return share * x0 + share * eps


@functools.cache
def of_network(config: NetworkConfig) -> Planned:
    """A network of ours by itself, trained with the published process."""
    description = config.to_dict()
    family = FAMILIES[family_of(description)]
    return Planned(family, description, Training(family.settings(), CosineProcess()), config.volume_size)


# -- arithmetic ---


@functools.cache
def count_parameters(planned: Planned) -> dict[str, int]:
    """Numbers of all parameters of a module and of those an optimiser trains."""
    with torch.device("meta"):
        module = planned.build(attention="sdpa")
    return {"all": _numel(module.parameters()), "trainable": _numel(trainable_parameters(module))}


def count_flops(planned: Planned, batch: int, *, training: bool, checkpointing: bool = False) -> int:
    """Floating-point operations of the matrix products of the losses of a batch, two per multiply-add.

    Args:
        planned: what is trained.
        batch: B.
        training: count the backward pass, too, with what checkpointing recomputes.
        checkpointing: see `Family.build`.
    """
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), torch.set_grad_enabled(training):
        module = planned.build(attention="plain", checkpointing=checkpointing)  # products the counter knows
        with counter:
            losses = list(planned.losses(module, batch))
            if training:
                torch.stack(losses).sum().backward()
    return int(counter.get_total_flops())


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


# -- memory ---


@dataclass(frozen=True)
class Work:
    """What memory is planned for.

    Attributes:
        name: of the training.
        what: `train`, `sample` for drawing volumes, or `reconstruct` for drawing them by a guide that differentiates the network
            (one that does not takes what `sample` takes).
        precision: `fp32`, or `bf16` for autocast.
        checkpointing: see `Family.build`.
    Raises: ValueError: at construction, for an unknown precision.
    """

    name: str
    what: str
    precision: str = "fp32"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {list(PRECISIONS)}.")

    def __str__(self) -> str:
        return f"{self.what} {self.name}, {self.precision}" + (", checkpointing" if self.checkpointing else "")


@dataclass(frozen=True)
class Memory:
    """Bytes at the moment of the peak.

    Attributes:
        weights: of the network, float32.
        gradients: of the trained weights; those of the step before live through the forward pass.
        moments: AdamW's two per trained weight.
        ema: the average of the trained weights.
        activations: all else: batch, what is kept for the backward pass, temporaries.
        allocator: what it holds beyond tensors, see `ALLOCATOR_SHARES`.
    """

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    ema: int = 0
    activations: int = 0
    allocator: int = 0

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(asdict(self).values())


def memory_of(work: Work, planned: Planned, batch: int, device: str = "cpu") -> Memory:
    """Peak of a training step with AdamW and EMA, after the first one, or of drawing a batch with the default sampler.

    Args:
        work: what is done; its name does not matter.
        planned: what is trained or sampled.
        batch: B.
        device: `cpu` or `cuda`.
    Raises: ValueError: for an unknown device or a batch below 1.
    """
    if device not in ALLOCATOR_SHARES:
        raise ValueError(f"device is {device!r}; expected one of {list(ALLOCATOR_SHARES)}.")
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1 volume.")
    counts = count_parameters(planned)
    trained = 4 * counts["trainable"] if work.what == "train" else 0
    parts = Memory(4 * counts["all"], trained, 2 * trained, trained)
    fixed, per_volume = _traced(planned, work, float32_norms=device == "cuda" and work.precision == "bf16")
    peak = int((fixed + batch * per_volume).max()) + parts.moments + parts.ema
    activations = max(peak - parts.total, 0)
    of_kept, of_passing = ALLOCATOR_SHARES[device]
    of_activations = of_passing if work.what == "sample" or work.checkpointing else of_kept
    allocator = int(of_kept * (parts.gradients + parts.moments) + of_activations * activations)
    return replace(parts, activations=activations, allocator=allocator)


@functools.cache
def _traced(planned: Planned, work: Work, *, float32_norms: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bytes alive after each operation: those of no volume and those per volume.

    All batches make the same operations; where noise is drawn volume by volume they do not, and only the peaks are compared.
    """
    few, more = _TRACED_BATCHES
    lives = []
    for batch in _TRACED_BATCHES:
        with FakeTensorMode():
            module = planned.build(attention="sdpa", checkpointing=work.checkpointing)
            if float32_norms:
                _normalize_in_float32(module)
            trace = MemoryTrace()
            trace.hold([*module.parameters(), *module.buffers()])
            with trace:
                _WORKS[work.what](planned, module, batch, work.precision == "bf16")
        lives.append(np.array(trace.timeline))
    if len(lives[0]) != len(lives[1]):
        lives = [live.max(keepdims=True) for live in lives]
    per_volume = (lives[1] - lives[0]) // (more - few)
    return lives[0] - few * per_volume, per_volume


def _normalize_in_float32(network: nn.Module) -> None:
    """As CUDA's autocast does; the CPU's leaves norms in the type of their input."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _train(planned: Planned, module: nn.Module, batch: int, bf16: bool) -> None:
    """One step in the order of the training loop."""
    parameters = trainable_parameters(module)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)  # of the step before
    losses = planned.losses(module, batch)
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = next(losses, None)
        if loss is None:
            return
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        del loss


@torch.no_grad()
def _evaluate(planned: Planned, module: nn.Module, batch: int, bf16: bool) -> None:
    """One evaluation of the default sampler, with what it holds meanwhile; a family of another kind of network draws in two."""
    module.eval().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        width = getattr(module, "prepared_width", None)  # see `PRDiT.prepared`, which needs values
        if width is None and (request := _drawing(planned)):
            generators = [torch.Generator() for _ in range(batch)]
            planned.family.generate(module, planned.training.process, request, generators)
            return
        states = [planned.volumes(batch) for _ in range(_SAMPLER_VOLUMES)]
        prepared = torch.empty(Sampler().num_steps, width or 0)
        module(states[0], torch.tensor(0.0))
    del states, prepared


def _differentiate(planned: Planned, module: nn.Module, batch: int, bf16: bool) -> None:
    """One evaluation of a guided sampler, and the vector-Jacobian product of its image (`prdit_models.inverse.guides`)."""
    module.eval().requires_grad_(False)
    states = [planned.volumes(batch) for _ in range(_SAMPLER_VOLUMES + _GUIDE_VOLUMES)]
    prepared = torch.empty(Sampler().num_steps, getattr(module, "prepared_width", None) or 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.enable_grad():
        seen = states[0].requires_grad_()
        image = module(seen, torch.tensor(0.0)).to(seen.dtype).chunk(2, dim=1)[-1]
        torch.autograd.grad(image, seen, states[1].expand_as(image))
    del states, prepared


_WORKS = {"train": _train, "sample": _evaluate, "reconstruct": _differentiate}


def largest_batch(work: Work, planned: Planned, limit_bytes: int, device: str) -> int:
    """The largest batch of some work that stays within a limit; 0 if none does."""
    return bisect.bisect_right(
        range(1, _LARGEST_BATCH), limit_bytes, key=lambda batch: memory_of(work, planned, batch, device).total
    )


# -- the plan ---


def plan(trainings: Mapping[str, Planned], batches: Mapping[str, int]) -> dict[str, Any]:
    """Plan trainings and sampling in both precisions, trainings also with activation checkpointing.

    Args:
        trainings: by name, in order.
        batches: volumes computed together, by the training's name.
    Returns: JSON-ready: by training `parameters`, `batch` and `flops` (of the losses and of a training step of the batch); rows
        `cpu`, the fields of a `Work` and of its `Memory`; rows `gpu`, the fields of a `Work`, `needed_bytes` and `largest_batch`
        by GiB of the GPU. The latter are estimates (planned bytes, the allocator's share, a CUDA context).
    Raises: ValueError: a batch below 1, or a training that cannot be planned.
    """
    cpu, gpu = [], []
    for name, planned in trainings.items():
        for work in _works(name, planned):
            memory = memory_of(work, planned, batches[name])
            cpu.append({**asdict(work), **asdict(memory), "total": memory.total})
            needed = memory_of(work, planned, batches[name], "cuda").total + GPU_CONTEXT_BYTES
            fits = {gib: largest_batch(work, planned, gib * GIB - GPU_CONTEXT_BYTES, "cuda") for gib in GPU_SIZES_GIB}
            gpu.append({**asdict(work), "needed_bytes": needed, "largest_batch": fits, "estimate": True})
    return {
        "batch": dict(batches),
        "parameters": {name: count_parameters(planned) for name, planned in trainings.items()},
        "flops": {name: _flops(planned, batches[name]) for name, planned in trainings.items()},
        "cpu": cpu,
        "gpu": gpu,
    }


def _works(name: str, planned: Planned) -> list[Work]:
    trainings = [Work(name, "train", precision, again) for precision in PRECISIONS for again in (False, True)]
    if not _drawing(planned):
        return trainings
    guided = ["reconstruct"] if getattr(planned.family, "guided", False) else []
    return trainings + [Work(name, what, precision) for what in ("sample", *guided) for precision in PRECISIONS]


def _drawing(planned: Planned) -> Request | None:
    """A drawing in two steps; None for a family that draws no volumes."""
    process = planned.training.process
    return first_drawing(
        planned.family, planned.description, process, ("euler", "ddim"), 2
    )  # every process of ours has one


def _flops(planned: Planned, batch: int) -> dict[str, int]:
    return {
        "forward": count_flops(planned, batch, training=False),
        "training_step": count_flops(planned, batch, training=True),
        "training_step_checkpointing": count_flops(planned, batch, training=True, checkpointing=True),
    }
