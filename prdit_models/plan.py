"""What a training or sampling needs before it is started: parameters, arithmetic and memory of every stage.

The network, its loss and its backward pass themselves run, on PyTorch's fake tensors, which have shapes and no memory, and what
they keep is counted, so that the numbers follow the code. Left out: the process itself (Python and PyTorch, 0.3 GiB) and
the scans.
"""

import bisect
import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampler import Sampler
from prdit_models.networks.build import Network, build_network
from prdit_models.networks.cascade import RefinedPRDiT, low_frequency_loss
from prdit_models.networks.config import CascadeConfig, NetworkConfig, model_config
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
_LARGEST_BATCH = 2**20


# -- what is trained: all that knows the kinds of networks ---


def stage_networks(preset: str, size: int, *, refine: bool = False) -> dict[str, NetworkConfig]:
    """Networks that are trained on the way to a preset: stage 1 and 2, or with `refine` stage 3 alone.

    Args:
        preset: see `model_config`; with depth 0, stage 1 is all there is.
        size: volume edge S in voxels; with `refine` the edge of the refined volume, whose base works at half of it.
    Raises: ValueError: for an unknown preset or a size it cannot have.
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected the volume edge in voxels, such as 64 or 128.")
    local = preset.rpartition("/")[0] + "/0"
    if not refine:
        last = model_config(preset, size)
        networks: dict[str, NetworkConfig] = {"local": model_config(local, size)}
        return networks | {"global": last} if last.depth else networks
    if size % 2:
        raise ValueError(f"size is {size}; refining doubles the edge of a base model, so it must be even.")
    base = model_config(preset, size // 2)
    if not base.depth:
        raise ValueError(f"Preset {preset!r} has depth 0; stage 3 refines a stage-2 model. Use depth 4, for example.")
    return {"refiner": CascadeConfig(model_config(local, size), base)}


def _loss(network: Network, x_t: Tensor, x0: Tensor, eps: Tensor, t: Tensor, *, bf16: bool) -> Tensor:
    """Loss of one batch, as `tasks.train` computes it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if isinstance(network, RefinedPRDiT):
            parts = network(x_t, t, parts=True)
            losses = CosineProcess().losses((parts.upsampled + parts.head).float(), x0, eps)
            return losses["loss"] + low_frequency_loss(parts, network.config.in_channels).mean()
        output = network(x_t, t)
    return CosineProcess().losses(output.float(), x0, eps)["loss"]


# -- arithmetic ---


@functools.cache
def count_parameters(config: NetworkConfig) -> dict[str, int]:
    """Numbers of all parameters of a network and of those an optimiser trains."""
    with torch.device("meta"):
        network = build_network(config)
    return {"all": _numel(network.parameters()), "trainable": _numel(trainable_parameters(network))}


def count_flops(config: NetworkConfig, batch: int, *, training: bool, checkpointing: bool = False) -> int:
    """Floating-point operations of the matrix products of a forward pass or of a training step, two per multiply-add.

    Args:
        config: of the network.
        batch: B.
        training: count the backward pass, too, with what checkpointing recomputes.
        checkpointing: see `PRDiT`.
    """
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), torch.set_grad_enabled(training):
        network = build_network(config, attention="plain", checkpointing=checkpointing)  # products the counter knows
        inputs = _inputs(network, batch)
        with counter:
            loss = _loss(network, *inputs, bf16=False)
            if training:
                loss.backward()
    return int(counter.get_total_flops())


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _inputs(network: Network, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (batch, network.config.in_channels, *(network.config.volume_size,) * 3)
    return torch.empty(shape), torch.empty(shape), torch.empty(shape), torch.empty(batch, dtype=torch.long)


# -- memory ---


@dataclass(frozen=True)
class Work:
    """What memory is planned for.

    Attributes:
        stage: `local`, `global` or `refiner`.
        what: `train`, or `sample` for drawing volumes.
        precision: `fp32`, or `bf16` for autocast.
        checkpointing: see `PRDiT`.
    Raises: ValueError: at construction, for an unknown precision.
    """

    stage: str
    what: str
    precision: str = "fp32"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {list(PRECISIONS)}.")

    def __str__(self) -> str:
        return f"{self.what} {self.stage}, {self.precision}" + (", checkpointing" if self.checkpointing else "")


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


def memory_of(work: Work, config: NetworkConfig, batch: int, device: str = "cpu") -> Memory:
    """Peak of a training step with AdamW and EMA, after the first one, or of drawing a batch with the default sampler.

    Args:
        work: of a network with this `config`; its stage does not matter.
        config: of the network.
        batch: B.
        device: `cpu` or `cuda`.
    Raises: ValueError: for an unknown device or a batch below 1.
    """
    if device not in ALLOCATOR_SHARES:
        raise ValueError(f"device is {device!r}; expected one of {list(ALLOCATOR_SHARES)}.")
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1 volume.")
    counts = count_parameters(config)
    trained = 4 * counts["trainable"] if work.what == "train" else 0
    parts = Memory(4 * counts["all"], trained, 2 * trained, trained)
    fixed, per_volume = _traced(config, work, float32_norms=device == "cuda" and work.precision == "bf16")
    peak = int((fixed + batch * per_volume).max()) + parts.moments + parts.ema
    activations = max(peak - parts.total, 0)
    of_kept, of_passing = ALLOCATOR_SHARES[device]
    of_activations = of_passing if work.what == "sample" or work.checkpointing else of_kept
    allocator = int(of_kept * (parts.gradients + parts.moments) + of_activations * activations)
    return replace(parts, activations=activations, allocator=allocator)


@functools.cache
def _traced(config: NetworkConfig, work: Work, *, float32_norms: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bytes alive after each operation: those of no volume and those per volume; all batches make the same operations."""
    few, more = _TRACED_BATCHES
    lives = []
    for batch in _TRACED_BATCHES:
        with FakeTensorMode():
            network = build_network(config, attention="sdpa", checkpointing=work.checkpointing)
            if float32_norms:
                _normalize_in_float32(network)
            trace = MemoryTrace()
            trace.hold([*network.parameters(), *network.buffers()])
            with trace:
                (_train if work.what == "train" else _evaluate)(network, batch, work.precision == "bf16")
        lives.append(np.array(trace.timeline))
    per_volume = (lives[1] - lives[0]) // (more - few)
    return lives[0] - few * per_volume, per_volume


def _normalize_in_float32(network: nn.Module) -> None:
    """As CUDA's autocast does; the CPU's leaves norms in the type of their input."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _train(network: Network, batch: int, bf16: bool) -> None:
    """One step in the order of the training loop."""
    inputs, parameters = _inputs(network, batch), trainable_parameters(network)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)  # of the step before
    loss = _loss(network, *inputs, bf16=bf16)
    for parameter in parameters:
        parameter.grad = None
    loss.backward()


@torch.no_grad()
def _evaluate(network: Network, batch: int, bf16: bool) -> None:
    """One evaluation of the default sampler, with what it holds meanwhile."""
    network.eval().requires_grad_(False)
    states = [_inputs(network, batch)[0] for _ in range(_SAMPLER_VOLUMES)]
    modulations = [module.weight for name, module in network.named_modules() if name.endswith("adaLN_modulation.1")]
    prepared = [torch.empty(Sampler().num_steps, len(weight)) for weight in modulations]  # see `PRDiT.prepared`
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        network(states[0], torch.tensor(0.0))
    del states, prepared


def largest_batch(work: Work, config: NetworkConfig, limit_bytes: int, device: str) -> int:
    """The largest batch of some work that stays within a limit; 0 if none does."""
    return bisect.bisect_right(
        range(1, _LARGEST_BATCH), limit_bytes, key=lambda batch: memory_of(work, config, batch, device).total
    )


# -- the plan ---


def plan(preset: str, size: int, batch: int, *, refine: bool = False) -> dict[str, Any]:
    """Plan every stage on the way to a preset, in both precisions, stage 2 also with activation checkpointing.

    Args:
        preset, size, refine: see `stage_networks`.
        batch: B.
    Returns: JSON-ready: the arguments; by stage `parameters` and `flops` (of a forward pass and of a training step of the batch);
        rows `cpu`, the fields of a `Work` and of its `Memory`; rows `gpu`, the fields of a `Work`, `needed_bytes` and
        `largest_batch` by GiB of the GPU. The latter are estimates (planned bytes, the allocator's share, a CUDA context).
    Raises: ValueError: for an unknown preset, a size it cannot have, or a batch below 1.
    """
    networks = stage_networks(preset, size, refine=refine)
    cpu, gpu = [], []
    for stage, config in networks.items():
        for work in _works(stage):
            memory = memory_of(work, config, batch)
            cpu.append({**asdict(work), **asdict(memory), "total": memory.total})
            needed = memory_of(work, config, batch, "cuda").total + GPU_CONTEXT_BYTES
            fits = {gib: largest_batch(work, config, gib * GIB - GPU_CONTEXT_BYTES, "cuda") for gib in GPU_SIZES_GIB}
            gpu.append({**asdict(work), "needed_bytes": needed, "largest_batch": fits, "estimate": True})
    return {
        "preset": preset,
        "size": size,
        "batch": batch,
        "refine": refine,
        "parameters": {stage: count_parameters(config) for stage, config in networks.items()},
        "flops": {stage: _stage_flops(stage, config, batch) for stage, config in networks.items()},
        "cpu": cpu,
        "gpu": gpu,
    }


def _works(stage: str) -> list[Work]:
    """Checkpointing is planned for stage 2, where it saves most; a local denoiser alone draws no anatomy."""
    recompute = (False, True) if stage == "global" else (False,)
    trainings = [Work(stage, "train", precision, again) for precision in PRECISIONS for again in recompute]
    return trainings + [Work(stage, "sample", precision) for precision in PRECISIONS if stage != "local"]


def _stage_flops(stage: str, config: NetworkConfig, batch: int) -> dict[str, int]:
    found = {
        "forward": count_flops(config, batch, training=False),
        "training_step": count_flops(config, batch, training=True),
    }
    if stage == "global":
        found["training_step_checkpointing"] = count_flops(config, batch, training=True, checkpointing=True)
    return found
