"""How fast a training goes and what the machine does meanwhile, as points."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch

from prdit_models.cards import peak_tflops
from prdit_models.plan import GIB, count_flops
from tasks.model.memory import planned_of
from tasks.train.config import TrainingConfig
from tasks.train.ranks import Ranks
from tasks.train.setup import Assembly

logger = logging.getLogger("prdit.train")


class Speed:
    """Rates over the steps since the last point; what is no training (validation, previews) does not count.

    Args:
        assembly: what is trained.
        config: of the training.
        ranks: rates are those of all together.
        step: that the training begins or goes on from.
    """

    def __init__(self, assembly: Assembly, config: TrainingConfig, ranks: Ranks, step: int) -> None:
        self._step = step
        self._volumes = config.batch_size * config.accumulation
        self._tokens = getattr(getattr(assembly.module, "config", None), "num_tokens", None)
        self._device = assembly.device
        self._flops = _flops(assembly) if ranks.first else None
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else ""
        peak = peak_tflops(name, config.precision)
        self._peak = peak * 1e12 * ranks.world if peak else None
        self._since = time.monotonic()
        self._waited = 0.0
        psutil.cpu_percent()  # the next call tells of the time since this one

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block does not count."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def values(self, step: int, waited_s: float) -> dict[str, float]:
        """Rates since the last call.

        Args:
            step: of the training now; below the last one where it went back since.
            waited_s: how long this process has waited for data, in all.
        """
        now = time.monotonic()
        seconds, waited = max(now - self._since, 1e-9), max(0.0, waited_s - self._waited)
        self._since, self._waited = now, waited_s
        steps, self._step = max(0, step - self._step), step
        found = {
            "speed/steps_per_s": steps / seconds,
            "speed/volumes_per_s": steps * self._volumes / seconds,
            "speed/data_stall_share": min(1.0, waited / seconds),
        }
        if self._tokens:
            found["speed/tokens_per_s"] = steps * self._volumes * self._tokens / seconds
        if self._flops:
            rate = steps * self._volumes * self._flops / seconds
            found["speed/model_tflops_per_s"] = rate / 1e12
            if self._peak:
                found["speed/model_flops_utilization"] = rate / self._peak
        return found | self._system()

    def _system(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        found = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_used_gib": (memory.total - memory.available) / GIB,
            "system/process_memory_gib": psutil.Process().memory_info().rss / GIB,
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            found["system/gpu_memory_used_gib"] = (total - free) / GIB
            found["system/gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
            with suppress(Exception):  # needs NVIDIA's management library, which a container may lack
                found["system/gpu_percent"] = float(torch.cuda.utilization(self._device))
        return found


def _flops(assembly: Assembly) -> int | None:
    """Of a training step per volume, without what checkpointing computes again; None for a family that cannot be planned."""
    try:
        return count_flops(planned_of(assembly.info, assembly.training), 1, training=True)
    except Exception:  # a family of another package may do what a plan cannot follow
        logger.info("the operations of a step cannot be counted; their rate is not logged", exc_info=True)
        return None
