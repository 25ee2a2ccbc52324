"""Slices of two acquisitions, or of two people, that together are one even stack."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from storage.errors import UnusableSeriesError
from storage.sources.dicom import DICOM
from storage.sources.source import Limits, ScanRequest, SourceVolume
from tests.unit.storage.dicom_files import linear_hu, write_series

NUM = 24
LIMITS = Limits(min_slices=16)


def load(folder: Path) -> list[SourceVolume]:
    files = tuple(sorted(path.name for path in folder.iterdir()))
    return list(DICOM.load(ScanRequest(folder, files, "1.2.3.4.5", LIMITS)))


def reason_of(folder: Path) -> str:
    with pytest.raises(UnusableSeriesError) as error:
        load(folder)
    message = str(error.value)
    assert not [value for value in ("SECRET", "Maier", "1980") if value in message]
    return error.value.reason


def write(folder: Path, *values: dict[str, Any], halves: bool = False) -> None:
    """A series whose slices have the tags of the two in turn, or the lower and upper half of them."""

    def change(k: int, data: Dataset) -> None:
        data.InstanceNumber = k + 1
        for name, value in values[k * 2 // NUM if halves else k % 2].items():
            setattr(data, name, value)

    write_series(folder, shape=(NUM, 20, 22), change=change)


def pair(name: str, one: Any, other: Any, **both: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {name: one} | both, {name: other} | both


PEOPLE = {
    "name": pair("PatientName", "Maier^A", "Maier^B", PatientID=""),
    "birth": pair("PatientBirthDate", "19500101", "19800101"),
    "sex": pair("PatientSex", "M", "F"),
    "age": pair("PatientAge", "060Y", "030Y"),
    "issuer": pair("IssuerOfPatientID", "SECRET1", "SECRET2"),
}
ACQUISITIONS = {
    "time": pair("AcquisitionTime", "100000", "103000"),
    "date and time": pair("AcquisitionDateTime", "20200101100000", "20200101103000.5"),
    "event": pair("IrradiationEventUID", "1.2.3", "1.2.4"),
    "voltage": pair("KVP", 80, 140),
    "type": pair("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", "DET_A"], ["ORIGINAL", "PRIMARY", "AXIAL", "DET_B"]),
    "series": pair("SeriesNumber", 2, 3),
    "description": pair("SeriesDescription", "SECRET ART", "SECRET VEN"),
    "thickness": pair("SliceThickness", 5, 2.5),
    "diameter": pair("ReconstructionDiameter", 256, 500),
    "position": pair("PatientPosition", "HFS", "FFS"),
    "contrast": pair("ContrastBolusAgent", "WATER", "IOM"),
    "maker": pair("Manufacturer", "SIEMENS", "GE"),
    "station": pair("StationName", "SECRET1", "SECRET2"),
    "serial": pair("DeviceSerialNumber", "SECRET1", "SECRET2"),
    "model": pair("ManufacturerModelName", "Force", "Revolution"),
}
SCANNERS = ("position", "serial", "model")
NOTED = ("voltage", "type", "series", "description", "thickness", "diameter", "contrast", "maker", "station")


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("what", PEOPLE)
def test_two_people_are_never_one_volume(what: str, halves: bool, tmp_path: Path) -> None:
    write(tmp_path, *PEOPLE[what], halves=halves)
    assert reason_of(tmp_path) == "several_patients"


@pytest.mark.parametrize("what", PEOPLE)
def test_what_one_image_does_not_say_contradicts_nothing(what: str, tmp_path: Path) -> None:
    one, other = PEOPLE[what]
    write(tmp_path, one, dict.fromkeys(other, ""))
    if what != "name":  # its images are without PatientID
        one["PatientID"] = other["PatientID"] = "P"
    write(tmp_path, one, one | {name: "" for name in one if name != "PatientID"})
    assert len(load(tmp_path)) == 1


def test_a_name_in_other_letters_is_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, *pair("PatientName", "Maier^Anna", "MAIER^ANNA^^"))
    assert len(load(tmp_path)) == 1


@pytest.mark.parametrize("what", ACQUISITIONS)
def test_acquisitions_that_alternate_are_never_one_volume(what: str, tmp_path: Path) -> None:
    write(tmp_path, *ACQUISITIONS[what])
    assert reason_of(tmp_path) == "several_acquisitions"


@pytest.mark.parametrize("what", ACQUISITIONS)
def test_values_that_change_once_along_the_stack_are_no_evidence(what: str, tmp_path: Path) -> None:
    write(tmp_path, *ACQUISITIONS[what], halves=True)
    if what in SCANNERS:
        assert reason_of(tmp_path) == "several_acquisitions"
        return
    (found,) = load(tmp_path)
    notes = [note for note in found.notes if "not the same in all slices" in note]
    assert notes == [f"{next(iter(ACQUISITIONS[what][0]))}: not the same in all slices"] * (what in NOTED)


@pytest.mark.parametrize("places", [(7,), (1, 4, 7, 10, 13, 16, 19, 22), tuple(range(0, NUM, 2))])
@pytest.mark.parametrize("what", ACQUISITIONS)
def test_a_tag_that_some_slices_lack_is_no_evidence(what: str, places: tuple[int, ...], tmp_path: Path) -> None:
    _, values = ACQUISITIONS[what]

    def change(k: int, data: Dataset) -> None:
        for name, value in values.items():
            setattr(data, name, "" if k in places else value)

    write_series(tmp_path, shape=(NUM, 20, 22), change=change)
    assert len(load(tmp_path)) == 1


@pytest.mark.parametrize("name", ["AcquisitionNumber", "ConvolutionKernel", "TemporalPositionIdentifier", "StackID"])
@pytest.mark.parametrize("value", ["", None])
def test_few_slices_without_what_tells_volumes_apart_are_of_the_others(name: str, value: Any, tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        setattr(data, name, value if k in (0, 7) else "1")

    write_series(tmp_path, shape=(NUM, 20, 22), change=change)
    (found,) = load(tmp_path)
    assert found.hu.shape[0] == NUM
    assert found.left_out == ()


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("KVP", ["120", "120.0", "120.00", "1.2E2"]),
        ("SliceThickness", ["2.5", "0", "2.50"]),
        ("AcquisitionTime", ["101010", "101010.000000"]),
        ("Manufacturer", ["ACME", "Acme"]),
        ("SeriesDescription", ["Thorax 1.0", "THORAX 1.0 "]),
        ("ImageType", ["ORIGINAL\\PRIMARY\\AXIAL", "ORIGINAL\\PRIMARY\\AXIAL\\"]),
        ("PatientSex", ["F", "f"]),
        ("PatientAge", ["060Y", "60Y", "720M"]),
        ("ManufacturerModelName", ["Sensation 16", "SENSATION16"]),
        ("AcquisitionDate", ["20200101", "2020.01.01"]),
        ("PatientBirthDate", ["19500101", "1950.01.01"]),
        ("StudyDate", ["20200101", "2020.01.01"]),
        ("PatientName", ["Doe^J.R.", "DOE^J.R.^^"]),
    ],
)
def test_one_value_in_several_spellings(name: str, spellings: list[str], tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        setattr(data, name, spellings[k % len(spellings)])

    write_series(tmp_path, shape=(NUM, 20, 22), change=change)
    assert len(load(tmp_path)) == 1


def test_heart_phases_that_differ_from_beat_to_beat_are_one_scan(tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        data.NominalPercentageOfCardiacPhase = (70, 71, 70, 69, 72)[k % 5]

    write_series(tmp_path, shape=(NUM, 20, 22), change=change)
    assert len(load(tmp_path)) == 1


def test_days_of_the_study_are_one(tmp_path: Path) -> None:
    for halves in (False, True):
        write(tmp_path, *pair("StudyDate", "20200101", "20210101"), halves=halves)
        assert reason_of(tmp_path) == "several_studies"


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ([k // 2 + 1 for k in range(NUM)], "several_acquisitions"),  # 1 1 2 2
        ([k // 2 + 1 + k % 2 * 12 for k in range(NUM)], "several_acquisitions"),  # 1 13 2 14
        ([k // 2 + 1 if k % 2 else 12 - k // 2 for k in range(NUM)], "several_acquisitions"),  # 12 1 11 2
        ([k // 3 + 1 for k in range(NUM)], "several_acquisitions"),
        ([k % 12 + 1 for k in range(NUM)], ""),  # halves that follow each other
        ([1] * NUM, ""),
        ([2 * k for k in range(NUM)], ""),
        ([k * 7 % NUM for k in range(NUM)], ""),  # of no order
        ([None] * NUM, ""),
    ],
)
def test_instance_numbers_of_interleaved_sets(numbers: list[int | None], reason: str, tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        data.InstanceNumber = numbers[k]

    write_series(tmp_path, shape=(NUM, 20, 22), change=change)
    if reason:
        assert reason_of(tmp_path) == reason
    else:
        assert len(load(tmp_path)) == 1


def timed(folder: Path, second_of: Any, start: datetime = datetime(2020, 1, 1, 10)) -> None:
    def change(k: int, data: Dataset) -> None:
        time = start + timedelta(seconds=second_of(k))
        data.AcquisitionDate, data.AcquisitionTime = f"{time:%Y%m%d}", f"{time:%H%M%S.%f}"

    write_series(folder, shape=(NUM, 20, 22), change=change)


def test_times_that_grow_along_the_stack_are_one_acquisition(tmp_path: Path) -> None:
    for second_of in (lambda k: 0.3 * k, lambda k: 20 - 0.3 * k, lambda k: k // 4 * 2.0, lambda k: 3.0):
        timed(tmp_path, second_of)
        assert len(load(tmp_path)) == 1


def test_times_of_two_acquisitions_that_alternate(tmp_path: Path) -> None:
    """Every slice has a time of its own."""
    timed(tmp_path, lambda k: 0.3 * k + 1800 * (k % 2))
    assert reason_of(tmp_path) == "several_acquisitions"


def test_days_of_acquisition_never_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, *pair("AcquisitionDate", "20200101", "20210101"), halves=True)
    assert reason_of(tmp_path) == "several_acquisitions"
    timed(tmp_path, lambda k: k // 12 * 86400 * 30)
    assert reason_of(tmp_path) == "several_acquisitions"


def test_a_scan_over_midnight_is_one(tmp_path: Path) -> None:
    timed(tmp_path, float, datetime(2020, 1, 1, 23, 59, 50))
    assert len(load(tmp_path)) == 1


@pytest.mark.parametrize("date", ["", "20200101"])
def test_a_pause_of_hours_is_between_two_scans(date: str, tmp_path: Path) -> None:
    def write_at(*times: str) -> None:
        def change(k: int, data: Dataset) -> None:
            data.AcquisitionDate, data.AcquisitionTime = date, times[k * len(times) // NUM]

        write_series(tmp_path, shape=(NUM, 20, 22), change=change)

    write_at("101000", "161000")
    assert reason_of(tmp_path) == "several_acquisitions"
    write_at("101000", "105900")
    assert len(load(tmp_path)) == 1
    write_at("235950", "000010")  # over midnight, on the date of the study
    assert len(load(tmp_path)) == 1


def test_places_taken_twice_name_the_tags_that_differ(tmp_path: Path) -> None:
    for name, energy in (("a", "40"), ("b", "60")):

        def change(k: int, data: Dataset, energy: str = energy) -> None:
            data.KVP, data.SOPInstanceUID = energy, f"1.2.{energy}.{k + 1}"
            data.AcquisitionTime = f"10000{energy[0]}"

        def hu(world: np.ndarray, energy: str = energy) -> np.ndarray:
            return linear_hu(world) + float(energy)

        write_series(tmp_path, hu, shape=(NUM, 20, 22), change=change)
        for path in list(tmp_path.glob("[0-9]*.dcm")):
            path.rename(tmp_path / f"{name}{path.name}")
    with pytest.raises(UnusableSeriesError, match=r", differing in KVP") as error:
        load(tmp_path)
    assert error.value.reason == "duplicate_slices"


def test_phases_never_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, *pair("TemporalPositionIdentifier", 1, 2), halves=True)
    assert reason_of(tmp_path) == "several_acquisitions"
