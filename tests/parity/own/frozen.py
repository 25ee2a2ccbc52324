"""The frozen numbers: a few of each result and its norm, in `values.json`."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.parity.measure import Measure, close
from tests.parity.own.cases import Case, Values, scale_of

VALUES = Path(__file__).with_name("values.json")
NUM_VALUES = 8
# Float32 tables of another processor differ in last bits, which at t = 950 are 6e-5 rad of an embedding's fastest components.
MACHINE = 1e-5


def summary(values: Values) -> dict[str, Any]:
    """Shape, norm and evenly spaced numbers of each result, to nine digits."""
    return {
        key: {
            "shape": list(value.shape),
            "norm": float(f"{float(value.double().norm()):.9g}"),
            "values": [float(f"{number:.9g}") for number in _spread(value).tolist()],
        }
        for key, value in values.items()
    }


def _spread(value: torch.Tensor) -> torch.Tensor:
    flat = value.double().flatten()
    places = torch.linspace(0, flat.numel() - 1, min(NUM_VALUES, flat.numel()), dtype=torch.float64).round().long()
    return flat[places]


@cache
def frozen() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(VALUES.read_text())
    return stored


def against_frozen(case: Case, found: Values, what: str, atol: float) -> list[Measure]:
    """Results of a case beside its frozen numbers."""
    stored, now = frozen()[case.name], summary(found)
    assert stored.keys() == now.keys(), set(stored) ^ set(now)
    measures = []
    for key, expected in stored.items():
        assert now[key]["shape"] == expected["shape"], (case.name, key)
        allowed = atol * scale_of(found[key])
        measures.append(close(f"{key}, {what} against frozen", now[key]["values"], expected["values"], allowed))
        # errors of single numbers are as good as independent: their norm is bounded by the largest times the root of their number
        root = max(1.0, float(found[key].numel()) ** 0.5)
        measures.append(close(f"|{key}|, {what} against frozen", now[key]["norm"], expected["norm"], allowed * root))
    return measures
