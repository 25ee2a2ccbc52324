"""Training and sampling speed on this machine: `python -m tests.bench.bench_models` (torch's threads by OMP_NUM_THREADS)."""

import json
import sys
import time
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.ema import ema_decay, ema_update
from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.prdit import PRDiT, trainable_parameters

SIZE = 32
BATCH = 8
STEPS = 6
SAMPLER_STEPS = 200


def _seconds_each(work: Callable[[], object], repeats: int) -> float:
    work()  # warm-up: allocator, thread pool, first-use dispatch
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def _training_step(model: PRDiT, process: CosineProcess) -> Callable[[], object]:
    parameters = trainable_parameters(model)
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(BATCH, 1, SIZE, SIZE, SIZE, generator=generator) * 2 - 1

    def step() -> None:
        t, eps = process.draw_times(BATCH, generator), process.noise(tuple(x0.shape), generator)
        optimizer.zero_grad(set_to_none=True)
        process.losses(model(process.q_sample(x0, t, eps), t), x0, eps)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema_update(averages, parameters, ema_decay(0, 0.9999))

    return step


@torch.no_grad()
def _forward(model: PRDiT, batch: int, t: Tensor | int) -> Callable[[], object]:
    x = torch.zeros(batch, 1, SIZE, SIZE, SIZE)
    return lambda: model(x, t)


def _sampler_memory() -> dict[str, float]:
    """Resident memory early and late in one long sampling run of a small model."""
    process = psutil.Process()
    resident: dict[int, float] = {}
    model = PRDiT(ModelConfig(SIZE, 12, 8, 2, 48, 4, 1)).eval()
    sample(
        model,
        CosineProcess(),
        Sampler("predictor-corrector", SAMPLER_STEPS),
        volume_size=SIZE,
        generators=[torch.Generator().manual_seed(seed) for seed in range(2)],
        callback=lambda done, *_: resident.update({done: process.memory_info().rss / 2**20}),
    )
    early, late = SAMPLER_STEPS // 10, SAMPLER_STEPS
    return {
        f"sampler_rss_mib_step_{early}": round(resident[early], 1),
        f"sampler_rss_mib_step_{late}": round(resident[late], 1),
        "sampler_rss_growth_mib": round(resident[late] - resident[early], 1),
    }


def main() -> None:
    process = CosineProcess()
    results: dict[str, float] = {"threads": torch.get_num_threads(), "volume_size": SIZE, "batch": BATCH}
    for name, preset in (("local", "XS/12/0"), ("global", "XS/12/4")):
        model = PRDiT(model_config(preset, SIZE))
        results[f"train_{name}_steps_per_s"] = round(1.0 / _seconds_each(_training_step(model, process), STEPS), 3)
    model = PRDiT(model_config("XS/12/4", SIZE)).eval()
    with torch.no_grad():
        results["forward_b1_s"] = round(_seconds_each(_forward(model, 1, 100), STEPS), 4)
        results["forward_b8_s"] = round(_seconds_each(_forward(model, BATCH, 100), STEPS), 4)

    def ten_steps() -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        sample(model, process, Sampler("predictor-corrector", 10), volume_size=SIZE, generators=generators)

    results["sampler_b4_s_per_step"] = round(_seconds_each(ten_steps, 1) / 10, 4)
    results |= _sampler_memory()
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
