"""Retraining on phantoms: a better challenger is promoted, a worse one held, and poisoned batches stay out of the store.

`python -m tests.drills.retraining [ROUNDS]`: one JSON object on stdout. A poisoned batch is 200 HU too bright, has an axis flipped
that its headers do not say, or is 20 copies of one scan. Each is rejected afterwards; then clean scans arrive again.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from prefect.testing.utilities import prefect_test_harness
from pydicom.uid import generate_uid

from storage.inbox_ledger import Ledger
from tests.retraining import Installation, without_waiting

COPIES = 20
_SLOW, _WELL, _WILD = 1e-6, 3e-3, 0.03  # learning rates: nothing is learned, something, everything is lost


def bright(pixels: np.ndarray, index: int) -> np.ndarray:
    """As with a wrong rescale intercept: 200 HU too much."""
    return pixels + 200


def flipped(pixels: np.ndarray, index: int) -> np.ndarray:
    """As with a wrong orientation in the headers: front and back exchanged."""
    return pixels[::-1]


def copied(pixels: np.ndarray, index: int) -> np.ndarray:
    """The same scan again, not to the bit: noise of one value, other for each copy."""
    return pixels + np.random.default_rng(index).integers(0, 2, pixels.shape)


Change = Callable[[np.ndarray, int], np.ndarray]
# What is changed how, in how many copies, of which series: of small phantoms some are too alike front to back to tell a flip.
POISON: dict[str, tuple[Change, int, int]] = {
    "200 HU": (bright, 2, 0),
    "flipped axis": (flipped, 2, 2),
    "copies": (copied, COPIES, 0),
}


def write_poisoned(series: Path, inbox: Path, name: str, change: Change, index: int) -> None:
    """A changed copy of a series as one of another patient."""
    target = inbox / f"{name}-{index}".replace(" ", "-")
    target.mkdir(parents=True)
    uid = generate_uid(entropy_srcs=[name, str(index)])
    for path in sorted(series.rglob("*.dcm")):
        data = pydicom.dcmread(path)
        kind = data.pixel_array.dtype
        limits = np.iinfo(kind)
        slope = float(getattr(data, "RescaleSlope", 1.0))
        pixels = change(data.pixel_array.astype(np.float64) * slope, index) / slope
        data.PixelData = np.clip(np.rint(pixels), limits.min, limits.max).astype(kind).tobytes()
        data.PatientID, data.SeriesInstanceUID = f"poisoned {name} {index}", uid
        data.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(data.SOPInstanceUID)])
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.save_as(target / path.name)


def run(folder: Path, rounds: int = 1, *, poison: tuple[str, ...] = tuple(POISON)) -> dict[str, Any]:
    """First champion, worse and better challengers, then poisoned batches; what each run said.

    Args:
        folder: an empty one.
        rounds: challengers of each kind, worse and better.
        poison: names of the poisoned batches.
    Raises: AssertionError: a decision was another one, or the champion changed where it must not.
    """
    before = Path.cwd()
    folder = folder.resolve()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            without_waiting(patch)
            return _story(Installation(folder, num_patients=8 + 2 * rounds + len(poison)), rounds, poison)
    finally:
        os.chdir(before)


def _story(place: Installation, rounds: int, poison: tuple[str, ...]) -> dict[str, Any]:
    said: dict[str, list[str]] = {"first": [], "worse": [], "better": [], "poisoned": []}
    series = place.arrive(8)
    said["first"].append(_expect(place.run(lr=_SLOW), "Promoted"))
    champion = _champion(place)
    for _ in range(rounds):
        place.arrive(1)
        said["worse"].append(_expect(place.run(lr=_WILD), "Challenger held"))
        assert _champion(place) == champion
    for number in range(rounds):
        place.arrive(1)
        said["better"].append(_expect(place.run(lr=_WELL, steps=40 + number), "Promoted"))
        assert _champion(place) > champion
        champion = _champion(place)
    for name in poison:
        change, count, patient = POISON[name]
        for index in range(count):
            write_poisoned(series[patient], place.inbox, name, change, index)
        found = place.run(lr=_WELL)
        said["poisoned"].append(_expect(found, "Held"))
        assert _champion(place) == champion
        with closing(Ledger(place.arrivals)) as ledger:
            ledger.reject(found["held"][0])
        assert (place.arrivals / "pictures" / f"{found['held'][0]:06d}.png").stat().st_size > 0
    return {"champion": champion, "decisions": len(place.decisions()), **said}


def _expect(found: dict[str, Any], state: str) -> str:
    assert found["state"] == state, found["reason"]
    return str(found["reason"])


def _champion(place: Installation) -> int:
    found = place.registry.find("champion")
    assert found is not None
    return found.version


def main() -> None:
    """Run the drill and print what was found."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
