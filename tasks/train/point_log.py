"""The growing file of a training's points: losses, speed, what the machine does.

A line that is there is final: it is fsynced, may have been sent to the tracking server, and is not written again when a resumed
training comes to the same step once more.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from storage.files import naming_path
from storage.outbox import points_of

FINAL = "final"  # note of points beyond the regular ones, which a training of more steps would not have
_OF_THIS_RUN = ("speed/", "system/")  # names of what another run of the same training would measure otherwise
_KEYS = ("step", "time_ms", "rewinds", "note")
Key = tuple[int, str, int, str]


class PointLog:
    """Points of one training.

    Args:
        path: of the JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: set[Key] = set()

    def open(self) -> None:
        """Find what is there; an incomplete last line, left by a killed process, is cut off. Raises: UnwritableError."""
        with naming_path(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as stream:
                stream.seek(0)
                data = stream.read()
                end = data.rfind(b"\n") + 1
                stream.truncate(end)
        self._known = {_key(point) for point in points_of(data[:end], self.path)}

    @property
    def has_any(self) -> bool:
        """Whether there are points."""
        return bool(self._known)

    def add(self, step: int, values: Mapping[str, float], *, rewinds: int, final: bool = False) -> None:
        """Append a point, unless it is there already; values that are not finite are left out.

        Args:
            step: of the training.
            values: by name.
            rewinds: how often the training went back to an earlier state.
            final: whether it is one beyond the regular ones.
        Raises: UnwritableError.
        """
        point: dict[str, Any] = {"step": step, "time_ms": int(time.time() * 1000)}
        point |= ({"rewinds": rewinds} if rewinds else {}) | ({"note": FINAL} if final else {})
        point |= {name: value for name, value in values.items() if math.isfinite(value)}
        if _key(point) in self._known:
            return
        self._known.add(_key(point))
        with naming_path(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(point) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def lasting(self) -> list[dict[str, Any]]:
        """The points as the artifact has them: what a repeated training would give again, of each step the last try."""
        last = {(point["step"], _kind(point), point.get("note")): point for point in read_points(self.path)}
        ordered = sorted(last.values(), key=lambda point: (point["step"], _kind(point) == "val"))
        return [_repeatable(point) for point in ordered]


def read_points(path: Path) -> list[dict[str, Any]]:
    """The whole points of a file, without lines that were damaged; none where there is no file."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    return points_of(data[: data.rfind(b"\n") + 1], path)


def regular(points: Iterable[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Points up to a step that a training of more steps has as well."""
    return [point for point in points if point["step"] <= step and point.get("note") != FINAL]


def _repeatable(point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in point.items()
        if name == "step" or (name not in _KEYS and not name.startswith(_OF_THIS_RUN))
    }


def _key(point: Mapping[str, Any]) -> Key:
    return int(point["step"]), _kind(point), int(point.get("rewinds", 0)), str(point.get("note", ""))


def _kind(point: Mapping[str, Any]) -> str:
    """`val` or `train`."""
    return "val" if any(name.startswith("val/") for name in point) else "train"
