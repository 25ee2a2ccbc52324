"""Ingest on the real CT: HU at world points by plain pydicom arithmetic, and sensible verdicts for awkward files."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from storage.documents.verdicts import IngestReport
from storage.snapshots import load_snapshot, newest
from storage.sources.dicom_pixels import plane_hu
from storage.sources.dicom_series import SeriesImages
from storage.sources.source import ScanRequest
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.tasks.test_ingest import tree, world_samples


def dicom_samples(folder: Path, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """World points at voxel centres and their HU (at least -1024), by pydicom and arithmetic alone."""
    slices = sorted((pydicom.dcmread(p) for p in folder.iterdir()), key=lambda d: float(d.ImagePositionPatient[2]))
    rng = np.random.default_rng(0)
    world, hu = [], []
    for _ in range(num_points):
        data = slices[rng.integers(2, len(slices) - 2)]
        r, c = rng.integers(60, data.Rows - 60), rng.integers(60, data.Columns - 60)
        orientation = np.asarray(data.ImageOrientationPatient, dtype=float)
        step = orientation[:3] * c * float(data.PixelSpacing[1]) + orientation[3:] * r * float(data.PixelSpacing[0])
        world.append(np.asarray(data.ImagePositionPatient, dtype=float) + step)
        value = float(data.pixel_array[r, c]) * float(data.RescaleSlope) + float(data.RescaleIntercept)
        hu.append(max(-1024.0, value))
    return np.asarray(world), np.asarray(hu)


@pytest.fixture(scope="module")
def ingested(real_ct: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[IngestReport, VolumeStore]:
    folder = tmp_path_factory.mktemp("real")
    before = tree(real_ct / "dicom" / "Lung_Dx-A0002_B40f")
    report = ingest(real_ct / "dicom", folder / "store", IngestConfig(), runner=Local(2))
    assert tree(real_ct / "dicom" / "Lung_Dx-A0002_B40f") == before
    return report, VolumeStore.open(folder / "store")


@pytest.mark.slow
def test_real_series_keep_hu_at_their_place(
    ingested: tuple[IngestReport, VolumeStore], real_ct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, store = ingested
    assert len(report.committed) == 4
    assert [e.reason for e in report.skipped] == ["not_ct"]
    volumes = {e.series_uid: e.volume_id for e in report.committed}
    for folder in sorted(p for p in (real_ct / "dicom").iterdir() if "annotations" not in p.name):
        uid = str(pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID)
        world, hu = dicom_samples(folder, 200)
        found = world_samples(store, volumes[uid], world)
        error = np.abs(found - hu)
        figures = {"median": round(float(np.median(error)), 1), "p90": round(float(np.quantile(error, 0.9)), 1)}
        figures["correlation"] = round(float(np.corrcoef(found, hu)[0, 1]), 4)
        with capsys.disabled():
            print(f"\n{folder.name}: {json.dumps(figures)}")
        assert figures["correlation"] > 0.98  # noise between voxels remains; a flip or a shift of 2 mm fails


@pytest.mark.slow
def test_real_store_is_whole_and_by_patient(ingested: tuple[IngestReport, VolumeStore]) -> None:
    _, store = ingested
    for volume_id in store.volume_ids():
        store.verify(volume_id)
    keys = [volume.patient_key for volume in load_snapshot(newest(store)).volumes.values()]
    assert len(keys) == 4
    assert len(set(keys)) == 3
    text = b"".join(p.read_bytes() for name in ("commits", "snapshots") for p in (store.path / name).iterdir())
    assert b"Lung_Dx-A0" not in text
    assert b"LIDC-IDRI" not in text


def test_awkward_real_files_get_verdicts(real_ct: Path, tmp_path: Path) -> None:
    config = small_ingest(spacing_mm=4.0, min_slices=4, excluded_body_parts=())
    report = ingest(real_ct / "robustness", tmp_path / "store", config, runner=Local(2))
    everything = [*report.skipped, *report.quarantined]
    assert all(e.reason and e.message for e in everything)
    assert {e.reason for e in report.skipped} >= {
        "unknown_format", "dicomdir", "localizer", "secondary_capture", "derived_reformat",
    }  # fmt: skip
    # The fifteen transfer syntaxes are one slice under one UID; single slices are too few.
    assert {e.reason for e in report.quarantined} <= {"too_few_slices", "duplicate_slices", "inconsistent_position"}
    store = VolumeStore.open(tmp_path / "store")
    tilts = [store.commit_record(e.volume_id).scan.tilt_deg for e in report.committed]
    assert len(report.committed) == 3  # head phantom with gantry tilt; low-resolution chests, one DICOM and one NRRD
    # One of the NRRD is the DICOM series again, another a mask of lungs.
    nrrds = [e.reason for e in report.skipped if str(e.series_uid).startswith("nrrd-")]
    assert sorted(map(str, nrrds)) == ["duplicate_volume", "not_hu"]
    assert max(tilts) == pytest.approx(18.5, abs=0.1)
    assert min(tilts) == 0


def test_every_transfer_syntax_decodes_to_the_same_hu(real_ct: Path) -> None:
    folder = real_ct / "robustness" / "transfer_syntaxes"
    names = tuple(sorted(path.name for path in folder.glob("*.dcm")))
    images = SeriesImages(ScanRequest(folder, names, "syntaxes"), "Series")
    hu = {plane.file: plane_hu(images.take_pixels(plane), plane).clip(-1024, 3071) for plane in images.planes}
    reference = hu["CTImage.dcm"]
    lossy = ("JPEG2000TransferSyntax", "JPEGLSLossy", "Process1T", "Process2_4", "Process6_8", "Process10_12")
    for name in names:
        limit = 40.0 if any(word in name for word in lossy) else 0.0
        assert np.median(np.abs(hu[name] - reference)) <= limit, name
