"""One comparison with a recorded value: how far off, how far allowed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Measure:
    """A comparison's largest error beside its tolerance.

    Attributes:
        what: was compared.
        error: the largest.
        tolerance: allowed to it.
        scale: largest value it was compared with, in the error's unit; 0 where the comparison is exact.
    """

    what: str
    error: float
    tolerance: float
    scale: float = 0.0

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def close(what: str, actual: Any, expected: Any, atol: float, rtol: float = 0.0) -> Measure:
    """Largest excess: max |a - e| against atol + rtol·max|e| is reported, elementwise `atol + rtol·|e|` decides."""
    a, e = _array(actual).astype(np.float64), _array(expected).astype(np.float64)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, recorded {e.shape}"
    error = np.abs(a - e)
    allowed = atol + rtol * np.abs(e)
    scale = float(np.abs(e).max(initial=0.0))
    worst = int(np.argmax(error - allowed)) if error.size else 0
    if error.size and not error.flat[worst] <= allowed.flat[worst]:
        return Measure(what, float(error.flat[worst]), float(allowed.flat[worst]), scale)
    return Measure(what, float(error.max(initial=0.0)), float(atol + rtol * scale), scale)


def relative(what: str, actual: float, expected: float, rtol: float) -> Measure:
    return Measure(what, abs(actual - expected) / abs(expected), rtol, 1.0)


def relative_l2(what: str, actual: Any, expected: Any, rtol: float) -> Measure:
    a, e = _array(actual).astype(np.float64), _array(expected).astype(np.float64)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, recorded {e.shape}"
    return Measure(what, float(np.linalg.norm(a - e) / np.linalg.norm(e)), rtol, 1.0)


def exact(what: str, actual: Any, expected: Any) -> Measure:
    """0 if equal, else 1 (arrays: the share of differing elements)."""
    if isinstance(actual, (torch.Tensor, np.ndarray)):
        a, e = _array(actual), _array(expected)
        assert a.shape == e.shape, f"{what}: shape {a.shape}, recorded {e.shape}"
        return Measure(what, float((a != e).mean()), 0.0)
    return Measure(what, 0.0 if actual == expected else 1.0, 0.0)
