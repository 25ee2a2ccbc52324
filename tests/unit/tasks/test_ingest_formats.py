"""Ingest of every format with one scan per file, and of volumes that are no whole chest: verdicts, notes, patients, HU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from storage.documents.verdicts import IngestReport
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import linear_hu, write_series
from tests.unit.storage.sources.nifti_files import RAS, write_image
from tests.unit.storage.sources.single_files import SHAPE, SPACING, centre_origin, world_linear

STEPS = np.diag(SPACING)


def run(source: Path, **config: Any) -> IngestReport:
    return ingest(source, source.parent / "store", small_ingest(**config), runner=Local(1))


def write_itk(path: Path, hu: np.ndarray) -> None:
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(SPACING)
    image.SetOrigin([float(v) for v in centre_origin(STEPS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), False)


def write_formats(source: Path) -> None:
    """One scan in each format; a constant apart, because equal scans count once."""
    hu = world_linear(STEPS, centre_origin(STEPS))
    write_itk(source / "SMITH.nrrd", (hu + 1).astype(np.float32))
    write_itk(source / "SMITH.mha", (hu + 2).astype(np.float32))
    write_itk(source / "luna" / "SMITH.mhd", (hu + 3).astype(np.float32))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = STEPS, centre_origin(STEPS)
    write_image(source / "SMITH.nii.gz", (hu + 4).astype(np.float32).transpose(2, 1, 0), RAS @ affine)
    np.savez_compressed(source / "trn00001.npz", ct=np.rint(hu + 5).astype(np.int16)[::-1])


def test_every_format_becomes_a_volume(tmp_path: Path) -> None:
    write_formats(tmp_path / "src")
    report = run(tmp_path / "src")
    assert (report.skipped, report.quarantined) == ([], [])
    assert (tmp_path / "src" / "luna" / "SMITH.raw").is_file()
    store = VolumeStore.open(tmp_path / "store")
    offsets = {"nrrd": {1}, "metaimage": {2, 3}, "nifti": {4}}
    for entry in report.committed:
        record = store.commit_record(entry.volume_id)
        assert str(entry.series_uid).startswith(record.scan.format + "-")
        assert (record.scan.num_slices, record.scan.completeness) == (SHAPE[0], "unknown")
        level = store.read_level(entry.volume_id)
        if record.scan.format == "npz":
            assert record.scan.spacing_mm == (0.8, 0.8, 0.8)
            continue
        index = np.stack(np.meshgrid(*(np.arange(8, n - 8) for n in level.hu.shape), indexing="ij"), axis=-1)
        found = level.hu[8:-8, 8:-8, 8:-8] - linear_hu(level.world_mm(index.astype(float)))
        offset = float(np.median(found))
        assert round(offset) in offsets[record.scan.format]
        assert np.abs(found - round(offset)).max() <= 1.0
    assert sorted(store.commit_record(e.volume_id).scan.format for e in report.committed) == [
        "metaimage", "metaimage", "nifti", "npz", "nrrd",
    ]  # fmt: skip
    everything = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"SMITH" not in everything
    assert b"trn00001" not in everything
    paths = {entry.path for entry in report.committed}
    assert paths == {"SMITH.nrrd", "SMITH.mha", "luna/SMITH.mhd", "SMITH.nii.gz", "trn00001.npz"}
    assert all(str(entry.path).startswith("file-") for entry in report.without_paths(bytes(32)).committed)
    again = run(tmp_path / "src")
    assert {e.volume_id for e in again.unchanged} == {e.volume_id for e in report.committed}


def test_the_voxels_beside_a_header_are_part_of_the_scan(tmp_path: Path) -> None:
    source = tmp_path / "src"
    hu = world_linear(STEPS, centre_origin(STEPS))
    write_itk(source / "a.mhd", hu.astype(np.float32))
    first = run(source)
    write_itk(source / "a.mhd", (hu + 10).astype(np.float32))  # the header keeps its bytes
    second = run(source)
    assert len(second.committed) == 1
    assert second.committed[0].volume_id != first.committed[0].volume_id


def test_spacing_and_patient_of_rad_chestct(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    hu = np.rint(world_linear(STEPS, centre_origin(STEPS))).astype(np.int16)
    for number in range(3):
        np.savez_compressed(source / f"trn0000{number}.npz", ct=hu + number)
    (source / "patients.csv").write_text("path,patient_id\ntrn00000.npz,A\ntrn00001.npz,A\n")
    report = run(source, npz_spacing_mm=1.25)
    store = VolumeStore.open(tmp_path / "store")
    assert {store.commit_record(e.volume_id).scan.spacing_mm for e in report.committed} == {(1.25, 1.25, 1.25)}
    volumes = load_snapshot(newest(store)).volumes.values()
    assert len({volume.patient_key for volume in volumes}) == 2
    assert sorted(volume.patient_known for volume in volumes) == [False, True, True]
    assert sum("1.25 × 1.25 × 1.25 mm and axes towards inferior" in note for note in report.notes) >= 1


def test_a_corrected_spacing_takes_effect(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    hu = np.rint(world_linear(STEPS, centre_origin(STEPS))).astype(np.int16)
    np.savez_compressed(source / "trn00001.npz", ct=hu)
    first = run(source)
    assert len(run(source).unchanged) == 1
    second = run(source, npz_spacing_mm=1.5)
    assert len(second.committed) == 1
    (volume_id,) = load_snapshot(newest(VolumeStore.open(tmp_path / "store"))).volumes
    assert volume_id == second.committed[0].volume_id != first.committed[0].volume_id


def air_and_tissue(world: np.ndarray) -> np.ndarray:
    return np.where(world[..., 0] < 0, -1000.0, 40.0)


def test_refused_scans_of_every_format_have_a_picture_and_name_their_file(tmp_path: Path) -> None:
    write_formats(tmp_path / "src")
    write_image(tmp_path / "src" / "SCALE.nii", np.zeros((20, 24, 22), np.int16), change=without_intercept)
    report = run(tmp_path / "src", min_slices=99)
    found = {entry.path: entry for entry in report.quarantined}
    assert found.keys() == {
        "SMITH.nrrd", "SMITH.mha", "luna/SMITH.mhd", "SMITH.nii.gz", "trn00001.npz", "SCALE.nii"
    }  # fmt: skip
    assert all(entry.thumbnail for entry in found.values())
    scale = found.pop("SCALE.nii")
    assert (scale.reason, scale.behind) == ("missing_rescale", None)  # DICOM's tags are none of NIfTI's
    assert "Rescale" not in str(scale.message)
    assert {(entry.reason, entry.behind) for entry in found.values()} == {
        ("too_few_slices", ("ingest.min_slices = 99",))
    }
    page = (tmp_path / "store.ingests" / "qc.html").read_text()
    assert page.count("data:image/png;base64,") == len(found) + 1
    assert '<p class="soft">file: luna/SMITH.mhd</p>' in page
    everything = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"SMITH" not in everything
    assert b"SCALE" not in everything


def without_intercept(header: Any) -> None:
    header["scl_inter"] = np.inf


SLABS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "short": ({"spacing": (4.0, 4.0, 2.0)}, {"min_length_mm": 60.0}, "too_short"),
    "narrow": ({"spacing": (1.5, 4.0, 3.0)}, {"min_width_mm": 60.0}, "too_narrow"),
    "thick": ({"spacing": (4.0, 4.0, 11.0)}, {}, "thick_slices"),
    "no air": ({"hu": lambda world: 40 + world[..., 0]}, {}, "not_hu"),
    "no tissue": ({"hu": lambda world: world[..., 0] - 900}, {}, "not_hu"),
    "nothing": ({"hu": lambda world: world[..., 0] * 0 - 1024}, {}, "no_content"),
    "beyond": ({"intercept": 30000.0, "hu": lambda world: 1000 + 30000 + world[..., 0]}, {}, "impossible_hu|not_hu"),
}


@pytest.mark.parametrize("name", SLABS)
def test_volumes_that_are_no_chest_are_refused_beside_good_ones(tmp_path: Path, name: str) -> None:
    series, config, reason = SLABS[name]
    good = {"shape": (24, 26, 28), "spacing": (4.0, 4.0, 3.0), "hu": air_and_tissue}
    write_series(tmp_path / "src" / "good", uid="1.2.1", **good)
    write_series(tmp_path / "src" / "bad", uid="1.2.2", **good | series)
    report = run(tmp_path / "src", **config)
    assert [entry.series_uid for entry in report.committed] == ["1.2.1"]
    (entry,) = [*report.skipped, *report.quarantined]
    assert (entry.series_uid, entry.reason in reason.split("|")) == ("1.2.2", True)
    assert all(f"ingest.{limit} = {value:g}" in (entry.message or "") for limit, value in config.items())
    assert all(entry.behind == (f"ingest.{limit} = {value:g}",) for limit, value in config.items())


@pytest.mark.parametrize("flips", [(1, -1, 1), (-1, -1, 1), (1, 1, -1)])
def test_a_converted_copy_with_flipped_axes_is_listed_once_with_the_patient_of_the_dicom(
    tmp_path: Path, flips: tuple[int, int, int]
) -> None:
    """What dcm2niix writes beside a series; at 0.7 mm, where float32 positions make stored voxels differ by rounding."""
    noise = np.random.default_rng(0).integers(-1000, 400, (24, 26, 28))
    source, spacing = tmp_path / "src", (0.7, 0.7, 1.3)
    write_series(
        source / "dicom",
        lambda world: np.zeros(world.shape[:2]),
        spacing=spacing,
        change=lambda k, data: setattr(data, "PixelData", (noise[k] + 1024).astype("<i2").tobytes()),
    )
    stored = noise.astype(np.int16).transpose(2, 1, 0)[:: flips[0], :: flips[1], :: flips[2]]
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.multiply(spacing, flips))
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(stored.shape) - 1) / 2)
    write_image(source / "a.nii.gz", stored, RAS @ affine)
    report = run(source)
    (volume,) = report.committed
    assert volume.series_uid == "1.2.3.4.5"
    assert [note for note in report.notes if "PatientID" in note] == []
    ((skipped),) = report.skipped
    assert (skipped.reason, volume.volume_id in (skipped.message or "")) == ("duplicate_volume", True)
    store = VolumeStore.open(tmp_path / "store")
    assert [(name, one.patient_known) for name, one in load_snapshot(newest(store)).volumes.items()] == [
        (volume.volume_id, True)
    ]
    assert run(source).snapshot == report.snapshot
    (source / "a.nii.gz").rename(tmp_path / "a.nii.gz")
    (tmp_path / "other").mkdir()
    (tmp_path / "a.nii.gz").rename(tmp_path / "other" / "a.nii.gz")
    assert run(tmp_path / "other").snapshot == report.snapshot
