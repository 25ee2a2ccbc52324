"""Where a stage that uses torch computes, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

import torch
from pydantic import Field

from storage.errors import InputError
from tasks.run.config import StageConfig
from tasks.run.machine import cores, sharing

Device = Literal["auto", "cpu", "cuda"]
Attention = Literal["auto", "sdpa", "xformers", "plain", "published-flash"]


class ComputeConfig(StageConfig):
    """Where a stage that uses torch computes; none of it enters the cache key."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"device", "num_threads"})

    device: Device = Field("auto", description="'auto' takes CUDA where there is one")
    num_threads: int | None = Field(None, ge=1, description="CPU threads; default: one per core that this job may use")


def pick_device(config: ComputeConfig, local_rank: int = 0, local_world: int = 1) -> torch.device:
    """The device of a stage; also sets its CPU threads.

    Args:
        config: of the stage.
        local_rank, local_world: which of how many processes of this machine that share its devices and cores.
    Raises: InputError: CUDA was asked for and is not available, or has fewer devices than there are processes.
    """
    set_threads(config, local_world)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device 'cuda' was asked for, but torch sees no CUDA device. Use device: auto or cpu (`prdit doctor` shows why)."
        )
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if not cuda:
        return torch.device("cpu")
    if local_world > torch.cuda.device_count():
        raise InputError(
            f"{local_world} processes were started on this machine, which has {torch.cuda.device_count()} CUDA device(s); each "
            "needs one. Lower launcher.ranks_per_node."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def set_threads(config: ComputeConfig, local_world: int = 1) -> None:
    """Set the CPU threads of a stage in this process, one of so many that share this machine's cores."""
    torch.set_num_threads(config.num_threads or max(1, cores().amount // (local_world * sharing())))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a stage computes in: bfloat16 autocast, or none for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
