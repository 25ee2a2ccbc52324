"""Scans of one slice each that are one scan, by themselves and in an ingest."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from storage.sources.single_slices import SingleSlice, one_scan_each
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import write_series


def singles(positions: np.ndarray, space: str = "A") -> dict[str, SingleSlice]:
    return {f"{space}{k}": SingleSlice(space, tuple(row)) for k, row in enumerate(positions.tolist())}


def along(step: tuple[float, float, float], num: int) -> np.ndarray:
    return np.asarray([10.0, -20.0, 30.0]) + np.arange(num)[:, None] * np.asarray(step)


@pytest.mark.parametrize("step", [(0.0, 0.0, 2.5), (0.0, 0.8, 2.4), (1.0, 0.0, 0.0)])
def test_even_slices_of_one_space_are_one_scan(step: tuple[float, float, float]) -> None:
    found = singles(along(step, 24)) | singles(along(step, 5), "B")
    assert one_scan_each(found) == {name: 24 if name[0] == "A" else 5 for name in found}


def test_a_missing_slice_does_not_hide_the_scan() -> None:
    assert len(one_scan_each(singles(np.delete(along((0, 0, 2.5), 24), [5, 6, 17], axis=0)))) == 21


@pytest.mark.parametrize(
    "positions",
    [
        along((0, 0, 2.5), 2),
        np.zeros((12, 3)),  # a slice taken again and again
        np.random.default_rng(0).uniform(-200, 200, (12, 3)),
        along((0, 0, 2.5), 12) * np.array([1, 1, 0])
        + np.array([0, 0, 1]) * np.random.default_rng(1).uniform(0, 300, (12, 1)),
    ],
)
def test_others_are_not(positions: np.ndarray) -> None:
    assert one_scan_each(singles(positions)) == {}


def test_an_ingest_names_them(tmp_path: Path) -> None:
    """Twelve series of one slice, where eight slices are needed; beside them a good one and a slice of another patient."""

    def single(k: int, data: Dataset) -> None:
        data.SeriesInstanceUID = f"1.7.{k}"

    def other(k: int, data: Dataset) -> None:
        data.SeriesInstanceUID, data.PatientID, data.StudyInstanceUID = "1.9.9", "Q", "1.9"

    write_series(tmp_path / "src" / "good", uid="1.2.3.1", shape=(20, 26, 28))
    write_series(tmp_path / "src" / "bad", shape=(12, 26, 28), change=single)
    write_series(tmp_path / "src" / "one", shape=(1, 26, 28), change=other)
    report = ingest(tmp_path / "src", tmp_path / "store", small_ingest(), runner=Local(1))
    assert [entry.series_uid for entry in report.committed] == ["1.2.3.1"]
    reasons = {str(entry.series_uid): entry.reason for entry in report.quarantined}
    assert reasons == {f"1.7.{k}": "one_series_per_slice" for k in range(12)} | {"1.9.9": "too_few_slices"}
    assert all("12 series" in str(e.message) for e in report.quarantined if e.reason == "one_series_per_slice")
