"""Ingest: HU and place in the world, verdicts, unchanged runs, sources left alone, no patient names."""

import os
from pathlib import Path

import ngff_zarr
import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset

from storage.documents.snapshot import SnapshotVolume
from storage.documents.verdicts import IngestReport
from storage.errors import SourceError, StoreFormatError
from storage.exports.nifti import write_nifti
from storage.files import sha256_file
from storage.phantom.series import write_demo_data
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest, open_scan
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import linear_hu, write_series

CONFIG = small_ingest()
_c, _s = np.cos(np.deg2rad(12)), np.sin(np.deg2rad(12))
ORIENTATIONS = {
    "supine": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "prone": ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "feet first": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "oblique": ((_c, _s, 0.0), (-_s, _c, 0.0)),
}


def run(source: Path, store: Path, config: IngestConfig = CONFIG) -> IngestReport:
    return ingest(source, store, config, runner=Local(1))


def listed(store: Path) -> dict[str, SnapshotVolume]:
    """What a store lists now."""
    return dict(load_snapshot(newest(VolumeStore.open(store))).volumes)


def world_samples(volume_store: VolumeStore, volume_id: str, world: np.ndarray) -> np.ndarray:
    """Trilinear HU at LPS points from the store's own OME metadata, with numpy alone."""
    import zarr

    group = zarr.open_group(str(volume_store.folder(volume_id)), mode="r")
    transforms = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    scale, translation = np.array(transforms[0]["scale"]), np.array(transforms[1]["translation"])
    hu = np.asarray(group["0"][...], dtype=np.float64)
    index = (world[:, ::-1] - translation) / scale
    low = np.floor(index).astype(int)
    total = np.zeros(len(world))
    for corner in np.ndindex(2, 2, 2):
        at = low + corner
        weight = np.prod(np.where(corner, index - low, 1 - (index - low)), axis=1)
        total += weight * hu[tuple(at.T)]
    return total


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_hu_stays_at_its_place_in_the_world(tmp_path: Path, name: str, slope: float) -> None:
    matrix = write_series(tmp_path / "src", axes=ORIENTATIONS[name], slope=slope, shape=(20, 24, 26))
    report = run(tmp_path / "src", tmp_path / "store")
    index = np.random.default_rng(0).uniform(4, 15, (200, 3))
    world = (np.c_[index, np.ones(200)] @ matrix.T)[:, :3]
    found = world_samples(VolumeStore.open(tmp_path / "store"), report.committed[0].volume_id, world)
    error = np.abs(found - linear_hu(world))
    assert np.median(error) <= 1.0
    assert error.max() <= 2.5


def test_gantry_tilt_is_sheared_back(tmp_path: Path) -> None:
    tilt = np.array([0.0, np.tan(np.deg2rad(18)), 1.0]) * 2.5
    matrix = write_series(tmp_path / "src", step=tilt, shape=(20, 24, 26))
    report = run(tmp_path / "src", tmp_path / "store")
    store = VolumeStore.open(tmp_path / "store")
    volume_id = report.committed[0].volume_id
    assert store.commit_record(volume_id).scan.tilt_deg == pytest.approx(18, abs=0.01)
    world = (np.c_[np.random.default_rng(0).uniform(5, 14, (200, 3)), np.ones(200)] @ matrix.T)[:, :3]
    assert np.median(np.abs(world_samples(store, volume_id, world) - linear_hu(world))) <= 1.0


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_markers_land_right_anterior_superior(tmp_path: Path, name: str) -> None:
    """One marker to the right, one anterior, one superior: in the store, in NIfTI, and read as OME-Zarr by another tool."""

    def marked(world: np.ndarray) -> np.ndarray:
        hu = np.full(world.shape[:-1], -1000.0)
        for centre, value in (((-10, 0, 0), 500), ((0, -10, 0), 1500), ((0, 0, 10), 2500)):
            hu[np.linalg.norm(world - np.array(centre), axis=-1) < 4] = value
        return hu

    write_series(tmp_path / "src", marked, axes=ORIENTATIONS[name], shape=(32, 36, 40), spacing=(1.0, 1.0, 1.0))
    report = run(tmp_path / "src", tmp_path / "store")
    volume = VolumeStore.open(tmp_path / "store").read_level(report.committed[0].volume_id)
    for centre, value in (((-10, 0, 0), 500), ((0, -10, 0), 1500), ((0, 0, 10), 2500)):
        z, y, x = np.rint(volume.index_of(np.array(centre, dtype=float))).astype(int)
        assert volume.hu[z, y, x] == pytest.approx(value, abs=60)
    middle = np.array(volume.hu.shape) / 2
    right = np.argwhere(np.abs(volume.hu - 500) < 60).mean(axis=0)
    assert right[2] < middle[2] - 5  # x grows towards left

    write_nifti(tmp_path / "volume.nii.gz", volume)
    image = nibabel.load(tmp_path / "volume.nii.gz")
    scale = ngff_zarr.from_ngff_zarr(
        str(VolumeStore.open(tmp_path / "store").folder(report.committed[0].volume_id))
    ).images[0]
    for (x, y, z), value in (((-10, 0, 0), 500), ((0, -10, 0), 1500), ((0, 0, 10), 2500)):
        i, j, k = np.rint(np.linalg.inv(image.affine) @ (-x, -y, z, 1))[:3].astype(int)  # NIfTI worlds are RAS
        assert image.get_fdata()[i, j, k] == pytest.approx(value, abs=60)
        place = {"x": x, "y": y, "z": z}
        index = tuple(round((place[axis] - scale.translation[axis]) / scale.scale[axis]) for axis in "zyx")
        assert np.asarray(scale.data)[index] == pytest.approx(value, abs=60)


def test_padding_and_values_below_air_become_air(tmp_path: Path) -> None:
    def filled(_: int, data: Dataset) -> None:
        pixels = np.frombuffer(data.PixelData, "<i2").reshape(data.Rows, data.Columns).copy()
        pixels[:6] = -2000
        pixels[-6:] = 2500
        data.PixelData = pixels.tobytes()
        data.add_new("PixelPaddingValue", "US", 2500)

    def body(world: np.ndarray) -> np.ndarray:
        return np.where(world[..., 0] < -8, -900.0, 40.0)

    write_series(tmp_path / "src", body, change=filled, spacing=(1.0, 1.0, 1.0))
    report = run(tmp_path / "src", tmp_path / "store")
    hu = VolumeStore.open(tmp_path / "store").read_level(report.committed[0].volume_id).hu
    assert hu.min() == -1024
    assert (hu[:, :6] == -1024).all()
    assert (hu[:, -6:] == -1024).all()
    assert hu[10, 13, 13] == 40


def drop(*names: str):
    def change(index: int, data: Dataset) -> None:
        for name in names:
            if index == 5:
                delattr(data, name)

    return change


def set_at(index: int, **values: object):
    def change(k: int, data: Dataset) -> None:
        for name, value in values.items():
            if k == index:
                setattr(data, name, value)

    return change


def fewer_rows(data: Dataset) -> None:
    data.Rows, data.PixelData = 13, data.PixelData[: 13 * 28 * 2]


BROKEN = {
    "missing_rescale": {"change": drop("RescaleSlope")},
    "missing_geometry": {"change": drop("ImagePositionPatient")},
    "missing_slices": {"skip": (9, 10)},
    "too_few_slices": {"shape": (5, 16, 16)},
    "inconsistent_spacing": {"change": set_at(4, PixelSpacing=[1.5, 1.7])},
    "inconsistent_orientation": {"change": set_at(4, ImageOrientationPatient=[0.99, 0.141, 0, -0.141, 0.99, 0])},
    "duplicate_slices": {"change": set_at(4, ImagePositionPatient=[-22.95, -16.25, -28.75])},
    "inconsistent_shape": {"change": lambda k, d: k == 4 and fewer_rows(d)},
    "unreadable_pixels": {"change": lambda k, d: k == 4 and setattr(d, "PixelData", d.PixelData[:100])},
}  # fmt: skip


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_series_are_quarantined_beside_good_ones(tmp_path: Path, reason: str) -> None:
    write_series(tmp_path / "src" / "good", uid="1.2.3.1")
    write_series(tmp_path / "src" / "bad", uid="1.2.3.2", **BROKEN[reason])
    report = run(tmp_path / "src", tmp_path / "store")
    assert [e.series_uid for e in report.committed] == ["1.2.3.1"]
    assert [(e.series_uid, e.reason) for e in report.quarantined] == [("1.2.3.2", reason)]
    assert "1.2.3.2" in report.quarantined[0].message
    assert [e["reason"] for e in VolumeStore.open(tmp_path / "store").exclusions()] == [reason]


def test_odd_files_survive(tmp_path: Path) -> None:
    source = tmp_path / "src"
    write_series(source / "good")
    (source / "notes.txt").write_text("not an image, just words of some length")
    (source / "empty").touch()
    (source / "scan.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    os.mkfifo(source / "pipe")
    (source / "loop").symlink_to(source)
    (source / "dangling").symlink_to(source / "nowhere")
    (source / "cut.dcm").write_bytes((source / "good" / "000.dcm").read_bytes()[:700])
    report = run(source, tmp_path / "store")
    assert len(report.committed) == 1
    reasons = {e.path: e.reason for e in (*report.skipped, *report.quarantined)}
    assert reasons["notes.txt"] == "unknown_format"
    assert reasons["empty"] == "unknown_format"
    assert reasons["scan.zip"] == "unreadable_file"
    assert reasons["pipe"] == "not_regular_file"
    assert reasons["dangling"] == "not_regular_file"
    assert reasons["cut.dcm"] == "unreadable_file"


@pytest.mark.parametrize("kind", ["missing", "empty", "no CT", "a file"])
def test_a_folder_without_ct_is_refused(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "src"
    if kind == "a file":
        source.write_text("x")
    elif kind != "missing":
        source.mkdir()
    if kind == "no CT":
        write_series(source / "mr", change=lambda _, d: setattr(d, "Modality", "MR"))
    with pytest.raises(SourceError, match="src"):
        run(source, tmp_path / "store")


def test_missing_modality_is_ct_by_its_sop_class(tmp_path: Path) -> None:
    write_series(tmp_path / "src", change=lambda _, d: delattr(d, "Modality"))
    assert len(run(tmp_path / "src", tmp_path / "store").committed) == 1


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(folder)): (sha256_file(p), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def test_second_run_is_unchanged_and_a_new_series_comes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "one", uid="1.2.3.1", patient_id="A")
    before = tree(source)
    first = run(source, store)
    assert tree(source) == before
    calls: list[str] = []
    monkeypatch.setattr("tasks.ingest.scans.ingest_series", lambda job: calls.append(job.scan.scan_id) or _real(job))
    second = run(source, store)
    assert not calls
    assert [e.volume_id for e in second.unchanged] == [e.volume_id for e in first.committed]
    assert not second.committed
    assert second.snapshot == first.snapshot
    write_series(source / "two", uid="1.2.3.2", patient_id="B", shape=(20, 26, 28))
    third = run(source, store)
    assert calls == ["1.2.3.2"]
    assert [e.series_uid for e in third.committed] == ["1.2.3.2"]
    assert [e.series_uid for e in third.unchanged] == ["1.2.3.1"]
    assert third.snapshot != first.snapshot


def _real(job):
    from tasks.ingest.series import ingest_series

    return ingest_series(job)


def test_volume_id_is_the_same_anywhere(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "elsewhere" / "b")
    (tmp_path / "s2.patient-key").write_text("00" * 32)
    (tmp_path / "s1.patient-key").write_text("00" * 32)  # the snapshot has patient keys, and they are the secret's
    one, two = run(tmp_path / "a", tmp_path / "s1"), run(tmp_path / "elsewhere", tmp_path / "s2")
    assert one.snapshot == two.snapshot
    digests = []
    for source in (tmp_path / "a", tmp_path / "elsewhere" / "b"):
        with open_scan(source, tmp_path / "s1", CONFIG, runner=Local(1)) as (scan, _):
            digests.append(scan.digest)
    assert digests[0] == digests[1]
    three = run(tmp_path / "a", tmp_path / "s3", small_ingest(interpolation="linear"))
    assert three.snapshot != one.snapshot


def test_the_same_scan_under_two_uids_counts_once(tmp_path: Path) -> None:
    write_series(tmp_path / "src" / "a", uid="1.2.3.1")
    write_series(tmp_path / "src" / "b", uid="1.2.3.2")
    report = run(tmp_path / "src", tmp_path / "store")
    assert len(report.committed) == 1
    assert [e.reason for e in report.skipped] == ["duplicate_volume"]


def test_a_completed_series_replaces_its_old_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "src", shape=(20, 26, 28))
    old = run(tmp_path / "src", tmp_path / "store").committed[0].volume_id
    write_series(tmp_path / "src", shape=(24, 26, 28))
    new = run(tmp_path / "src", tmp_path / "store").committed[0].volume_id
    assert list(listed(tmp_path / "store")) == [new] != [old]
    assert VolumeStore.open(tmp_path / "store").volume_ids() == sorted([old, new])  # earlier snapshots keep the old one


@pytest.mark.parametrize(("count", "noted"), [(20, False), (24, True)])
def test_a_list_that_comes_later_says_what_is_missing(tmp_path: Path, count: int, noted: bool) -> None:
    source = tmp_path / "src"
    write_series(source / "a", uid="1.2.3.1", shape=(20, 26, 28))
    (old,) = run(source, tmp_path / "store").committed
    (source / "metadata.csv").write_text(f"Series UID,Number of Images\n1.2.3.1,{count}\n")
    report = run(source, tmp_path / "store")
    assert [one.volume_id for one in report.unchanged] == [old.volume_id]
    found = [note for note in report.notes if "20 of the 24 images" in note]
    assert [f"prdit remove <store> {old.volume_id}." in note for note in found] == [True] * noted


def test_limits_that_are_tightened_later_name_what_stays(tmp_path: Path) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "a", uid="1.2.3.1", shape=(20, 26, 28))
    write_series(source / "b", uid="1.2.3.2", shape=(30, 26, 28))
    first = run(source, store)
    (short,) = (one.volume_id for one in first.committed if one.num_slices == 20)
    limits = {"min_slices": 25, "min_length_mm": 400.0, "min_width_mm": 400.0, "max_slice_mm": 1.0}
    for name, value in limits.items():
        again = run(source, store, CONFIG.model_copy(update={name: value}))
        assert (len(again.unchanged), again.snapshot) == (2, first.snapshot)
        (note,) = set(again.notes) - set(first.notes)
        if name == "min_slices":
            expected = f"would refuse 1 volume committed earlier, which the store goes on listing: {short}. Withdraw"
        else:
            expected = "would refuse 2 volumes committed earlier"
        assert note.startswith(f"ingest.{name}, as it is now, {expected}")
    assert run(source, store).notes == first.notes


def test_no_patient_attribute_leaves_the_source(tmp_path: Path) -> None:
    write_series(tmp_path / "src" / "good", uid="1.2.3.1")
    write_series(tmp_path / "src" / "bad", uid="1.2.3.2", skip=(9,))
    report = run(tmp_path / "src", tmp_path / "store")
    everything = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    everything += report.model_dump_json().encode()
    for secret in (b"SECRET-ID-77", b"Confidentia", b"19500601", b"Hidden Hospital", b"20200101"):
        assert secret not in everything
    row = next(iter(listed(tmp_path / "store").values())).columns
    assert (row["age_years"], row["PatientSex"], row["KVP"]) == (69, "F", 120.0)
    key = tmp_path / "store.patient-key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.write_text("00" * 32)
    with pytest.raises(StoreFormatError, match="patient key"):
        run(tmp_path / "src", tmp_path / "store")


def test_file_names_stay_outside_the_store(tmp_path: Path) -> None:
    """A stray file in a folder named after a patient: the caller gets its path, the store and what is sent an opaque id."""
    write_series(tmp_path / "src" / "Doe^John", shape=(16, 26, 28))
    (tmp_path / "src" / "Doe^John" / "notes of Doe.txt").write_text("nothing")
    report = run(tmp_path / "src", tmp_path / "store")
    assert [entry.path for entry in report.skipped] == ["Doe^John/notes of Doe.txt"]
    again = run(tmp_path / "src", tmp_path / "store")
    assert [entry.path for entry in again.skipped] == ["Doe^John/notes of Doe.txt"]
    kept = VolumeStore.open(tmp_path / "store").exclusions()[0]
    assert kept["path"].startswith("file-")
    assert kept["path"] in kept["message"]
    assert "Doe" not in report.without_paths(bytes(32)).model_dump_json()
    for path in (tmp_path / "store").rglob("*"):
        assert "Doe" not in path.name
        assert not path.is_file() or b"Doe" not in path.read_bytes(), path


def test_patients_csv_names_those_without_id(tmp_path: Path) -> None:
    for k in (1, 2, 3):
        write_series(tmp_path / "src" / f"s{k}", uid=f"1.2.3.{k}", patient_id="", shape=(15 + k, 26, 28))
    loud = run(tmp_path / "src", tmp_path / "s1")
    assert "3 scans without PatientID" in loud.notes[0]
    (tmp_path / "src" / "patients.csv").write_text("path,patient_id\ns1,P\ns2,P\ns3,Q\n")
    quiet = run(tmp_path / "src", tmp_path / "s2")
    assert quiet.notes == []
    keys = {v.attributes["SeriesInstanceUID"]: v.patient_key for v in listed(tmp_path / "s2").values()}
    assert keys["1.2.3.1"] == keys["1.2.3.2"] != keys["1.2.3.3"]


def test_demo_data_is_repeatable_and_gets_its_expected_verdicts(tmp_path: Path) -> None:
    series = write_demo_data(tmp_path / "a", num_patients=3, small=True)
    write_demo_data(tmp_path / "b", num_patients=3, small=True)
    first = {p.relative_to(tmp_path / "a"): p.read_bytes() for p in (tmp_path / "a").rglob("*.dcm")}
    assert first == {p.relative_to(tmp_path / "b"): p.read_bytes() for p in (tmp_path / "b").rglob("*.dcm")}
    report = run(tmp_path / "a", tmp_path / "store", small_ingest(spacing_mm=4.0, num_levels=1, min_slices=16))
    verdicts = {e.series_uid: "committed" for e in report.committed}
    verdicts |= {e.series_uid: e.reason for e in (*report.skipped, *report.quarantined)}
    assert verdicts == {s["series_uid"]: s["expected"] for s in series}
    store = VolumeStore.open(tmp_path / "store")
    for entry in report.committed:  # the patient looks the same whatever the acquisition: heart left, liver right
        volume = store.read_level(entry.volume_id)
        centre = next(s["centre_mm"] for s in series if s["series_uid"] == entry.series_uid)
        for offset, low, high in (((28, -22, -26), 0, 180), ((-45, -5, -90), 0, 120), ((-50, 0, 30), -1000, -600)):
            z, y, x = np.rint(volume.index_of(np.add(centre, offset))).astype(int)
            assert low <= np.median(volume.hu[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]) <= high


def test_the_file_a_sentence_names_stays_on_this_machine(tmp_path: Path) -> None:
    """A folder named after a patient: in the report for people, an opaque id in store and artifact."""
    write_series(tmp_path / "src" / "doe-john", change=drop("RescaleSlope"), shape=(16, 16, 20))
    write_series(tmp_path / "src" / "other", shape=(16, 16, 20), uid="1.2.3")
    report = run(tmp_path / "src", tmp_path / "store")
    (entry,) = report.quarantined
    assert "doe-john" in (entry.message or "")
    (kept,) = report.without_paths(bytes(32)).quarantined
    assert (kept.path or "").startswith("file-")
    assert kept.path in (kept.message or "")
    exclusions = "".join(path.read_text() for path in (tmp_path / "store" / "exclusions").iterdir())
    assert "missing_rescale" in exclusions
    assert "doe-john" not in exclusions + report.without_paths(bytes(32)).model_dump_json()
