"""Training steps of stage 2 at the batch the plan says fits: time by phase, FLOPs per second, peak memory beside the plan."""

import statistics
from collections.abc import Iterator

import torch

from prdit_models.cards import peak_tflops
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT
from prdit_models.plan import Work, count_flops, of_network
from tests.gpu_check.cards import device_name, matmul_tflops
from tests.gpu_check.memory import PLAN_LIMIT, largest_batch, memory_facts, peak, plan_error, planned
from tests.gpu_check.report import Fact, Row, compared, skipped
from tests.gpu_check.setting import Setting
from tests.gpu_check.training_step import PHASES, TrainingStep, random_batch

MAX_BATCH = 512
MAX_REPEATS, CELL_S = 5, 10.0  # steps that are timed: as many as fit into the seconds, three at least
LEAST_REPEATS = 3


def rows(setting: Setting) -> Iterator[Row]:
    """Each network in each precision, and with checkpointing."""
    rates = {precision: matmul_tflops(setting, precision) for precision in setting.precisions}
    for name, config in setting.configs.items():
        works = [
            Work("global", "train", precision, again)
            for again in (False, True)
            for precision in setting.precisions[::-1]
        ]
        for work in works[:-1] if len(works) > 2 else works:  # checkpointing in fp32 would show nothing new
            what = f"{name}, {work.precision}{', checkpointing' if work.checkpointing else ''}"
            if setting.out_of_time:
                yield skipped(what, "budget")
            else:
                yield from _rows_of(setting, what, work, config, rates[work.precision])


def _rows_of(setting: Setting, what: str, work: Work, config: ModelConfig, rate: float) -> Iterator[Row]:
    """One cell; where memory runs out at a batch that should fit by the plan, the row says so, and half the batch is tried."""
    batch = largest_batch(setting, work, config, MAX_BATCH)
    while True:
        setting.free_memory()
        try:
            row = _measured(setting, what, work, config, batch, rate)
        except torch.OutOfMemoryError:
            yield Row(f"{what}, batch {batch}", "differs", note="out of memory, though the plan says it fits")
            if batch == 1:
                return
            batch //= 2
            continue
        yield row
        return


def _measured(setting: Setting, what: str, work: Work, config: ModelConfig, batch: int, rate: float) -> Row:
    with setting.device:
        network = PRDiT(config, checkpointing=work.checkpointing).train()
    step = TrainingStep(setting, network, work.precision)
    given = random_batch(setting, config, batch)
    step(given)  # kernels are chosen, moments made
    _, first = step(given)
    repeats = max(LEAST_REPEATS, min(MAX_REPEATS, int(CELL_S / sum(first.values()))))
    laps = [step(given)[1] for _ in range(repeats)]
    existing = [*network.parameters(), *network.buffers(), *step.ema, given.x0, given.eps, given.t]
    existing += [value for state in step.optimizer.state.values() for value in state.values()]
    existing += [parameter.grad for parameter in step.parameters if parameter.grad is not None]
    with peak(setting, existing) as found:
        step(given)
    plan = planned(setting, work, config, batch)
    seconds = {phase: statistics.median(lap[phase] for lap in laps) for phase in PHASES}
    flops = count_flops(of_network(config), batch, training=True, checkpointing=work.checkpointing)
    facts = seconds | _speed(setting, work.precision, batch, sum(seconds.values()), flops, rate)
    error = plan_error(plan, found)
    note = "error: planned tensors against measured"
    return compared(f"{what}, batch {batch}", error, PLAN_LIMIT, note=note, **facts, **memory_facts(plan, found))


def _speed(setting: Setting, precision: str, batch: int, seconds: float, flops: int, rate: float) -> dict[str, Fact]:
    """Volumes and FLOPs per second, the latter as shares of the card's figure and of the rate its library reaches."""
    tflops = flops / seconds / 1e12
    known = peak_tflops(device_name(setting), precision)
    return {
        "step_s": seconds,
        "volumes_per_s": batch / seconds,
        "tflops": tflops,
        "of_peak": None if known is None else tflops / known,
        "of_matrix_product": tflops / rate,
    }
