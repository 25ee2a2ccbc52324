"""Where a stage that uses torch computes, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

import torch
from pydantic import Field

from storage.errors import InputError
from tasks.run.config import StageConfig
from tasks.run.machine import cores

Device = Literal["auto", "cpu", "cuda"]
Attention = Literal["auto", "sdpa", "xformers", "plain", "published-flash"]


class ComputeConfig(StageConfig):
    """Where a stage that uses torch computes; none of it enters the cache key."""

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"device", "num_threads"})

    device: Device = Field("auto", description="'auto' takes CUDA where there is one")
    num_threads: int | None = Field(None, ge=1, description="CPU threads; default: one per core that this job may use")


def pick_device(config: ComputeConfig) -> torch.device:
    """The device of a stage; also sets its CPU threads.

    Raises: InputError: CUDA was asked for and is not available.
    """
    torch.set_num_threads(config.num_threads or cores().amount)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device 'cuda' was asked for, but torch sees no CUDA device. Use device: auto or cpu (`prdit doctor` shows why)."
        )
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a stage computes in: bfloat16 autocast, or none for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
