"""What `torch.compile` gains in a training step, and that compiled code computes the same."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest import mock

import torch

from prdit_models.networks.compilation import CompiledNetwork
from prdit_models.networks.prdit import PRDiT
from tests.gpu_check.parity_limits import BF16, device_limit
from tests.gpu_check.report import Row, compared
from tests.gpu_check.setting import TINY_CONFIG, Setting, let_speak, relative_error
from tests.gpu_check.training_step import Batch, TrainingStep, random_batch

BATCH, TINY_BATCH = 16, 2
COMPILED_CPU = 2e-5  # tolerance of compiled code on the CPU, relative to the largest output


def rows(setting: Setting) -> Iterator[Row]:
    """The smallest timed network, in the best precision: seconds per step, uncompiled and compiled."""
    name, config = next(iter(setting.configs.items()))
    precision = "fp32" if setting.tiny else setting.precisions[-1]
    config = TINY_CONFIG if setting.tiny else config
    batch = TINY_BATCH if setting.tiny else BATCH
    with setting.device:
        network = PRDiT(config)
    let_speak(network)
    given = random_batch(setting, config, batch)
    with torch.no_grad(), setting.autocast(precision):
        exact = network(given.x0, given.t).float()
    plain_s = _step_seconds(setting, TrainingStep(setting, network, precision, lr=0.0), given)
    compiled = CompiledNetwork(network)
    began = time.perf_counter()
    with setting.autocast(precision), _compiler(setting):
        found = compiled(given.x0, given.t).detach().float()
    compile_s = time.perf_counter() - began
    what = f"{name}, {precision}, batch {batch}{', traced only' if setting.tiny else ''}"
    if compiled.failure is not None:
        yield Row(what, "failed", note=f"not compiled: {compiled.failure}")
        return
    compiled_s = _step_seconds(setting, TrainingStep(setting, network, precision, lr=0.0, call=compiled), given)
    yield compared(
        what,
        relative_error(found, exact),
        BF16 if precision == "bf16" else device_limit(COMPILED_CPU, 1.0),
        gain=plain_s / compiled_s,
        step_s=plain_s,
        compiled_step_s=compiled_s,
        compiling_s=compile_s,
    )


def _compiler(setting: Setting) -> AbstractContextManager[object]:
    """The compiler itself; for the tiny check only up to code generation, which takes a minute and shows nothing more."""
    if not setting.tiny:
        return nullcontext()
    return mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager"))


def _step_seconds(setting: Setting, step: TrainingStep, given: Batch) -> float:
    """Median seconds of a step; the weights do not change (learning rate 0)."""
    return setting.seconds(lambda: step(given))
