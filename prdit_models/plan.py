"""What a training or sampling needs before it is started: parameters, arithmetic, memory of every stage; nothing is allocated."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prdit_models.dry_run import (
    PRECISIONS,
    Memory,
    count_flops,
    count_parameters,
    meta_network,
    sample_memory,
    train_memory,
)
from prdit_models.networks.config import CascadeConfig, NetworkConfig, model_config

GIB = 2**30
GPU_SIZES_GIB = (8, 16, 24, 40, 80)
GPU_CONTEXT_BYTES = 600 * 2**20  # CUDA context, kernels and cuBLAS workspaces
_BATCH_STRIDE = 8  # factor between batches whose memory is looked at for the largest that fits


@dataclass(frozen=True)
class Work:
    """What memory is planned for.

    Attributes:
        stage: `local`, `global` or `refiner`.
        what: `train`, or `sample` for drawing volumes.
        precision: `fp32`, or `bf16` for autocast.
        checkpointing: see `PRDiT`.
    """

    stage: str
    what: str
    precision: str = "fp32"
    checkpointing: bool = False

    def __str__(self) -> str:
        return f"{self.what} {self.stage}, {self.precision}" + (", checkpointing" if self.checkpointing else "")


@dataclass(frozen=True)
class GpuEstimate:
    """Whether work fits on a GPU. An estimate (planned bytes, the allocator's share, a CUDA context), never measured.

    Attributes:
        gpu_gib: memory of the GPU.
        needed_bytes: at the planned batch.
        fits: whether that is there.
        largest_batch: that fits; 0 if none does.
    """

    gpu_gib: int
    needed_bytes: int
    fits: bool
    largest_batch: int


@dataclass(frozen=True)
class Plan:
    """What `prdit plan` shows.

    Attributes:
        preset, size, batch, refine: what was asked.
        parameters: by stage, of all and of trainable parameters.
        flops: by stage, of a forward pass and a training step at this batch, the latter of stage 2 also
            with checkpointing.
        cpu: memory on the CPU.
        gpu: memory on a GPU, by size of the GPU.
    """

    preset: str
    size: int
    batch: int
    refine: bool
    parameters: dict[str, dict[str, int]]
    flops: dict[str, dict[str, int]]
    cpu: list[tuple[Work, Memory]]
    gpu: list[tuple[Work, list[GpuEstimate]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; GPU rows say that they are estimates."""
        return {
            "preset": self.preset,
            "size": self.size,
            "batch": self.batch,
            "refine": self.refine,
            "parameters": self.parameters,
            "flops": self.flops,
            "cpu": [{**asdict(work), **asdict(memory), "total": memory.total} for work, memory in self.cpu],
            "gpu": [{**asdict(work), **asdict(row), "estimate": True} for work, rows in self.gpu for row in rows],
        }


def plan(preset: str, size: int, batch: int, *, refine: bool = False) -> Plan:
    """Plan every stage on the way to a preset, in both precisions, with and without activation checkpointing.

    Args:
        preset, size, refine: see `stage_networks`.
        batch: B.
    Raises: ValueError: for an unknown preset, a size it cannot have, or a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1 volume.")
    networks = stage_networks(preset, size, refine=refine)
    works = [work for stage in networks for work in _works(stage)]
    return Plan(
        preset,
        size,
        batch,
        refine,
        parameters={stage: count_parameters(meta_network(config)) for stage, config in networks.items()},
        flops={stage: _stage_flops(stage, config, batch) for stage, config in networks.items()},
        cpu=[(work, memory_of(work, networks[work.stage], batch)) for work in works],
        gpu=[(work, gpu_estimates(work, networks[work.stage], batch)) for work in works],
    )


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


def memory_of(work: Work, config: NetworkConfig, batch: int, device: str = "cpu") -> Memory:
    """Memory of one piece of work, see `train_memory` and `sample_memory`."""
    if work.what == "sample":
        return sample_memory(config, batch, precision=work.precision, device=device)
    return train_memory(config, batch, precision=work.precision, checkpointing=work.checkpointing, device=device)


def gpu_estimates(
    work: Work, config: NetworkConfig, batch: int, sizes_gib: Sequence[int] = GPU_SIZES_GIB
) -> list[GpuEstimate]:
    """Whether work fits on GPUs of some sizes, and the largest batch that does.

    Memory grows with the batch in straight pieces, ever steeper; between the batches that are looked at, a line is above it.
    """
    usable = [size * GIB - GPU_CONTEXT_BYTES for size in sizes_gib]
    here = memory_of(work, config, batch, "cuda").total
    known = [(1, here if batch == 1 else memory_of(work, config, 1, "cuda").total)]
    while known[-1][1] <= max(usable):
        larger = _BATCH_STRIDE * known[-1][0]
        known.append((larger, memory_of(work, config, larger, "cuda").total))
    rows = []
    for size, limit in zip(sizes_gib, usable, strict=True):
        fits, largest = here <= limit, _largest(known, limit)
        largest = max(largest, batch) if fits else min(largest, batch - 1)
        rows.append(GpuEstimate(size, here + GPU_CONTEXT_BYTES, fits, largest))
    return rows


def _largest(known: Sequence[tuple[int, int]], limit: int) -> int:
    """The largest batch within a limit, by lines between known (batch, bytes) of which the last exceeds it."""
    for (batch, size), (larger, more) in itertools.pairwise(known):
        if size <= limit < more:
            return batch + (limit - size) * (larger - batch) // (more - size)
    return 0


def stage_networks(preset: str, size: int, *, refine: bool = False) -> dict[str, NetworkConfig]:
    """Networks that are trained on the way to a preset: stage 1 and 2, or with `refine` stage 3 alone.

    Args:
        preset: see `model_config`; with depth 0, stage 1 is all there is.
        size: volume edge S in voxels; with `refine` the edge of the refined volume, whose base works at half of it.
    Raises: ValueError: for an unknown preset or a size it cannot have.
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected the volume edge in voxels, such as 64 or 128.")
    if not refine:
        last = model_config(preset, size)
        networks: dict[str, NetworkConfig] = {"local": model_config(_local_preset(preset), size)}
        return networks | {"global": last} if last.depth else networks
    if size % 2:
        raise ValueError(f"size is {size}; refining doubles the edge of a base model, so it must be even.")
    base = model_config(preset, size // 2)
    if not base.depth:
        raise ValueError(f"Preset {preset!r} has depth 0; stage 3 refines a stage-2 model. Use depth 4, for example.")
    return {"refiner": CascadeConfig(model_config(_local_preset(preset), size), base)}


def _local_preset(preset: str) -> str:
    return preset.rpartition("/")[0] + "/0"
