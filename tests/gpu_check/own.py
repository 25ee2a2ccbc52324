"""Our own parity set (`tests/parity/own`) with the product on the device, the float64 oracle on the CPU."""

from collections.abc import Iterator

import torch

from tests.gpu_check.parity_limits import BF16, TIME_TABLE, device_limit
from tests.gpu_check.report import Row, compared
from tests.gpu_check.setting import Setting
from tests.parity.frequencies import recorded_frequencies
from tests.parity.measure import Measure, relative_l2
from tests.parity.own.cases import CASES, Case, Values, scale_of
from tests.parity.own.cases import compared as measures_of
from tests.parity.own.frozen import MACHINE, against_frozen
from tests.parity.placement import computing_on

# Adam's first step is ±lr whatever a gradient's size: where it nearly vanishes, rounding chooses the sign. Of all weights together
# they are few, so their step in float64 is compared by its norm (the time table stays float32 on both sides).
STEP_L2 = 0.02


def rows(setting: Setting) -> Iterator[Row]:
    """Each case in each precision, and the oracle against its frozen numbers."""
    torch.set_num_threads(1)  # tiny arrays: threads only wait for each other
    references = {name: case.oracle() for name, case in CASES.items()}
    for name, case in CASES.items():
        reference = references[name] if case.in_float32 else _step_as_recorded(case)
        yield _worst(name, against_frozen(case, reference, "oracle", MACHINE), group="oracle, frozen numbers")
    with computing_on(setting.device):
        for name, case in CASES.items():
            if not case.in_float32:
                yield _worst(name, _steps(case, references[name]), group="optimiser steps in float64")
        for precision in setting.precisions:
            for name, case in CASES.items():
                if case.in_float32:
                    measures = _measures(setting, precision, case, references[name])
                    yield _worst(name, measures, group=f"own set, {precision}")


def _step_as_recorded(case: Case) -> Values:
    """The oracle's step with the time table of the processor that recorded: Adam amplifies its last bits."""
    with recorded_frequencies():
        return case.oracle()


def _measures(setting: Setting, precision: str, case: Case, reference: Values) -> list[Measure]:
    with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        found = case.product(torch.float32)
    atol = BF16
    if precision == "fp32":
        atol = TIME_TABLE if case.name == "tables" else device_limit(case.atol, 1.0)
    return measures_of(found, reference, precision, atol)


def _steps(case: Case, reference: Values) -> list[Measure]:
    found = case.product(torch.float64)
    moved = [key for key, value in reference.items() if float(value.abs().max()) > 0]
    return [
        relative_l2(key, found[key] / scale_of(reference[key]), reference[key] / scale_of(reference[key]), STEP_L2)
        for key in moved
    ]


def _worst(name: str, measures: list[Measure], group: str) -> Row:
    """The case by the comparison that comes nearest to its limit."""
    worst = max(measures, key=lambda m: m.error / m.tolerance if m.error == m.error else float("inf"))
    scale = worst.scale or 1.0
    return compared(
        name, worst.error / scale, worst.tolerance / scale, note=worst.what, group=group, comparisons=len(measures)
    )
