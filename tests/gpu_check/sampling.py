"""Seconds per sample with the default sampler, its memory beside the plan, and whether a seed is the same volume as on the CPU."""

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT
from prdit_models.plan import Work
from tests.gpu_check.memory import PLAN_LIMIT, Peak, largest_batch, memory_facts, peak, plan_error, planned
from tests.gpu_check.parity_limits import BF16, device_limit
from tests.gpu_check.report import Row, compared, skipped
from tests.gpu_check.setting import TINY_CONFIG, Setting, let_speak, relative_error

MAX_BATCH = {"bf16": 32, "fp32": 8}  # more volumes at once do not make one any cheaper
SAMPLER = Sampler()
_WARM_UP = Sampler(num_steps=2)
SAME_SEED_CPU = 2e-5  # tolerance of a sampler on the CPU in float32, see `tests.parity.own.cases`


def rows(setting: Setting) -> Iterator[Row]:
    """A small network's volumes beside the CPU's; then each network in each precision, one volume and as many as fit."""
    yield from _same_seed(setting)
    for name, config in setting.configs.items():
        for precision in setting.precisions[::-1]:
            work = Work("global", "sample", precision)
            batches = sorted({1, largest_batch(setting, work, config, MAX_BATCH[precision])})
            with setting.device:
                network = PRDiT(config).eval().requires_grad_(False)
            for batch in batches:
                what = f"{name}, {precision}, batch {batch}"
                if setting.out_of_time:
                    yield skipped(what, "budget")
                    continue
                seconds, found = _timed(setting, network, precision, batch)
                plan = planned(setting, work, config, batch)
                yield compared(
                    what,
                    plan_error(plan, found),
                    PLAN_LIMIT,
                    note="error: planned tensors against measured",
                    seconds_per_sample=seconds / batch,
                    evaluations=SAMPLER.num_steps,
                    **memory_facts(plan, found),
                )


def _timed(setting: Setting, network: PRDiT, precision: str, batch: int) -> tuple[float, Peak]:
    """Seconds per batch and its memory; on a CPU memory is measured in a second run, because counting takes time there."""
    draw(setting, network, precision, batch, _WARM_UP)
    setting.free_memory()
    held = [*network.parameters(), *network.buffers()]
    began = time.perf_counter()
    if setting.is_cuda:
        with peak(setting, held) as found:
            draw(setting, network, precision, batch, SAMPLER)
        return time.perf_counter() - began, found
    draw(setting, network, precision, batch, SAMPLER)
    seconds = time.perf_counter() - began
    with peak(setting, held) as found:
        draw(setting, network, precision, batch, SAMPLER)
    return seconds, found


def draw(setting: Setting, network: PRDiT, precision: str, batch: int, sampler: Sampler) -> Tensor:
    """Volumes of the seeds 0 … B-1, drawn as the sampling stage does: noise on the CPU, the result there."""
    config: ModelConfig = network.config
    with setting.autocast(precision):
        result = sample(
            network,
            CosineProcess(),
            sampler,
            volume_size=config.volume_size,
            generators=[torch.Generator().manual_seed(seed) for seed in range(batch)],
            device=setting.device,
        )
    return result.x.float().cpu()


def _same_seed(setting: Setting) -> Iterator[Row]:
    """A small network's volumes beside those of the CPU in float32."""
    network = PRDiT(TINY_CONFIG).eval().requires_grad_(False)
    let_speak(network)
    cpu = Setting(torch.device("cpu"), setting.tiny, setting.deadline)
    exact = draw(cpu, copy.deepcopy(network), "fp32", 2, SAMPLER)
    on_device = network.to(setting.device)
    for precision in setting.precisions:
        error = relative_error(draw(setting, on_device, precision, 2, SAMPLER), exact)
        limit = BF16 if precision == "bf16" else device_limit(SAME_SEED_CPU, 1.0)
        yield compared(f"a seed's volume as on the CPU, {precision}", error, limit)
