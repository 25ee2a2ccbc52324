"""A training of some hundred steps on the device, in fp32 and bf16, beside the same training on the CPU in float64.

The same start, the same volumes and the same noise at every step. Rounding drives trainings apart, so means over windows of steps
are compared, not single losses.
"""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT
from tests.gpu_check.report import Row, compared
from tests.gpu_check.setting import Setting
from tests.gpu_check.training_step import Batch, TrainingStep

CONFIG, NUM_STEPS, NUM_VOLUMES, BATCH, LR = ModelConfig(16, 6, 4, 1, 96, 6, 2), 300, 8, 4, 1e-3
TINY_CONFIG, TINY_STEPS = ModelConfig(8, 6, 4, 1, 48, 6, 1), 60
WINDOWS = 10
CPU_THREADS = 8  # more only wait for each other on networks of this size
LEARNED = 0.5  # of the first window's loss: what the last must fall below, or nothing was compared
# Of a window's mean loss. On a CPU float32 is off by 6e-7, by 4e-5 if every weight of the start is off by 1e-5 (as other tables
# would make it), bf16 by 4e-3.
LIMITS = {"fp32": 0.002, "bf16": 0.02}


def rows(setting: Setting) -> Iterator[Row]:
    """The largest distance of a window's mean loss, in each precision."""
    config, num_steps = (TINY_CONFIG, TINY_STEPS) if setting.tiny else (CONFIG, NUM_STEPS)
    torch.set_num_threads(min(CPU_THREADS, torch.get_num_threads()))
    torch.manual_seed(0)
    start = PRDiT(config)
    start.freeze_local(False)
    volumes = phantoms(NUM_VOLUMES, config.volume_size)
    cpu = Setting(torch.device("cpu"), setting.tiny, setting.deadline)
    reference = losses(cpu, copy.deepcopy(start).double(), volumes.double(), "fp32", num_steps)
    exact = window_means(reference)
    yield compared(
        "CPU, float64: the loss falls", exact[-1] / exact[0], LEARNED, steps=num_steps, first=exact[0], last=exact[-1]
    )
    for precision in setting.precisions:
        found = losses(setting, copy.deepcopy(start).to(setting.device), volumes, precision, num_steps)
        means = window_means(found)
        error = max(abs(mean / wanted - 1.0) for mean, wanted in zip(means, exact, strict=True))
        first = abs(found[0] / reference[0] - 1.0)
        yield compared(
            f"{setting.device.type}, {precision}: its loss follows",
            error,
            LIMITS[precision],
            first_loss_error=first,
            windows=means,
            windows_of_reference=exact,
        )


def losses(setting: Setting, network: PRDiT, volumes: Tensor, precision: str, num_steps: int) -> list[float]:
    """Loss of every step; a network in float64 is given everything in it."""
    step = TrainingStep(setting, network, precision, lr=LR)
    dtype = volumes.dtype
    found = []
    for index in range(num_steps):
        generator = torch.Generator().manual_seed(index)  # on the CPU: the same draws on every device
        chosen = torch.randint(0, len(volumes), (BATCH,), generator=generator)
        process = CosineProcess()
        t, eps = process.draw_times(BATCH, generator), process.noise((BATCH, *volumes.shape[1:]), generator)
        batch = Batch(volumes[chosen].to(setting.device), eps.to(setting.device, dtype), t.to(setting.device))
        found.append(step(batch)[0])
    return found


def window_means(values: list[float]) -> list[float]:
    """Means of equal stretches."""
    each = len(values) // WINDOWS
    return [math.fsum(values[start : start + each]) / each for start in range(0, each * WINDOWS, each)]


def phantoms(count: int, edge: int) -> Tensor:
    """Bodies with two lungs, each a little different, in model range, shape (count, 1, S, S, S)."""
    axis = torch.linspace(-1.0, 1.0, edge)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    found = []
    for index in range(count):
        width = 0.06 * index
        body = x**2 / (0.7 + width) + y**2 / 0.55 < 1.0
        lungs = (x.abs() - 0.4) ** 2 / 0.1 + y**2 / (0.2 + width / 2) + z**2 / 0.8 < 1.0
        found.append(torch.where(lungs, -0.8, torch.where(body, 0.05, -1.0)))
    return torch.stack(found)[:, None]
