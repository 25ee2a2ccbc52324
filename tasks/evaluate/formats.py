"""How the report writes numbers and pictures."""

import base64
import json
from typing import Any

import numpy as np


def number(value: float | None) -> str:
    """A figure with four significant digits; a dash where there is none."""
    if value is None:
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}".replace("-", "−")
    digits = max(0, 3 - int(np.floor(np.log10(abs(value))))) if value else 0
    return f"{value:.{digits}f}".replace("-", "−")


def plain(value: float) -> str:
    """A configured quantity (a size, a window) without trailing zeros."""
    return f"{value:.6g}".replace("-", "−")


def signed(value: float) -> str:
    """`plain` with a sign."""
    return plain(value) if value <= 0 else f"+{plain(value)}"


def interval(value: dict[str, Any] | None) -> str:
    """An interval as `low to high`."""
    return "–" if value is None else f"{number(value['low'])} to {number(value['high'])}"


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.2f} %"


def whole_percent(value: float | None) -> str:
    """A share of volumes as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


def span(values: list[float] | None) -> str:
    """Lowest, median and highest value of a side as `median (lowest to highest)`."""
    return "–" if values is None else f"{short(values[1])} ({short(values[0])} to {short(values[2])})"


def short(value: float | None) -> str:
    """A figure with three significant digits, whole from 100 on."""
    if value is None:
        return "–"
    return (f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}").replace("-", "−")


def pretty(value: Any) -> str:
    """JSON for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def picture(data: bytes) -> str:
    """A PNG or a WebP as a data URI."""
    kind = "png" if data.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
