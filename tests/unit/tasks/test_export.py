"""What is exported: which volumes, into a folder that is there whole or not at all."""

from pathlib import Path

import pytest

from storage.documents.export import Export
from storage.errors import AlreadyExistsError, InputError, UnreadableError, UnwritableError
from storage.files import sha256_file
from storage.geometry import Volume
from storage.places import as_place
from storage.snapshots import newest, withdraw
from storage.volume_store import VolumeStore
from tasks.export.folder import export, path_digest
from tasks.export.selection import select
from tests.exported import GENERATED, MARK, PATIENT, SCAN, SEED, SHAPE, sample_store, scan_store, thorax
from tests.factories import list_volumes
from tests.traced_kill import killed_at
from tests.unit.disks import small_disk

REPOSITORY = Path(__file__).parents[3]


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def two_patients(folder: Path) -> VolumeStore:
    """A store of three scans, two of them of one patient."""
    store = scan_store(folder)
    whole = thorax()
    for name in ("second", "third"):
        store.write(Volume(whole.hu, whole.spacing_mm, whole.origin_mm), volume_id=name, attributes={})
    list_volumes(store, {"second": PATIENT, "third": "fedcba98" * 4})
    return store


def test_volumes_are_chosen_by_id_by_patient_or_all(tmp_path: Path) -> None:
    store = two_patients(tmp_path / "store")
    assert set(select(store, everything=True).volumes) == {SCAN, "second", "third"}
    assert set(select(store, ["third"]).volumes) == {"third"}
    assert set(select(store, patients=[PATIENT[:6]]).volumes) == {SCAN, "second"}
    assert set(select(store, ["third"], patients=[PATIENT]).volumes) == {SCAN, "second", "third"}
    assert set(select(store, everything=True, snapshot="1").volumes) == {SCAN}
    withdraw(store, ["second"])
    assert set(select(store, everything=True).volumes) == {SCAN, "third"}
    assert set(select(store, everything=True, snapshot="2").volumes) == {SCAN, "second", "third"}
    assert list(select(sample_store(tmp_path / "samples.zarr"), everything=True).volumes) == [GENERATED]


def test_a_folder_in_a_bucket_is_refused_at_once(tmp_path: Path) -> None:
    chosen = select(scan_store(tmp_path / "store"), everything=True)
    with pytest.raises(InputError, match=r"The folder of an export is s3://scans/out, in an object store"):
        export(chosen, "nifti", as_place("s3://scans/out"), silent)


def test_a_choice_of_nothing_or_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    store, samples = two_patients(tmp_path / "store"), sample_store(tmp_path / "samples.zarr")
    withdraw(store, ["second"])
    with pytest.raises(InputError, match="Say which volumes"):
        select(store)
    with pytest.raises(InputError, match="Say which volumes"):
        select(store, ["third"], everything=True)
    with pytest.raises(InputError, match=r"No volume second in snapshot sha256:\w+…"):
        select(store, ["second"])
    with pytest.raises(InputError, match="'e': 0 patient keys"):
        select(store, patients=["e"])
    with pytest.raises(InputError, match=r"--level 2: .* has levels 0 to 1"):
        select(store, everything=True, level=2)
    with pytest.raises(InputError, match="generated volumes: it has no snapshots"):
        select(samples, everything=True, snapshot="1")
    with pytest.raises(InputError, match="No volume generated-00001"):
        select(samples, ["generated-00001"])


@pytest.mark.parametrize("format", ["nifti", "dicom", "ome-zarr"])
def test_a_folder_says_what_it_holds(tmp_path: Path, format: str) -> None:
    store, told = two_patients(tmp_path / "store"), []
    made = export(select(store, everything=True), format, tmp_path / "a" / "out", lambda *numbers: told.append(numbers))
    assert told[-1] == (3 * SHAPE[0], 3 * SHAPE[0])
    assert Export.load(tmp_path / "a" / "out") == made
    assert (made.format, made.snapshot, made.generated, made.level) == (format, newest(store).digest, None, 0)
    assert [volume.volume_id for volume in made.volumes] == sorted([SCAN, "second", "third"])
    assert [volume.synthetic for volume in made.volumes] == [False] * 3
    for volume in made.volumes:
        assert path_digest(tmp_path / "a" / "out" / volume.path) == volume.digest
    assert sorted(p.name for p in (tmp_path / "a" / "out").iterdir()) == sorted(
        ["export.json", *(volume.path for volume in made.volumes)]
    )
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


def test_generated_volumes_are_listed_with_their_seeds(tmp_path: Path) -> None:
    made = export(select(sample_store(tmp_path / "s"), everything=True), "nifti", tmp_path / "out", silent)
    assert made.generated == MARK
    assert [(one.synthetic, one.seed, one.path) for one in made.volumes] == [(True, SEED, f"{GENERATED}.nii.gz")]


def test_nothing_is_replaced(tmp_path: Path) -> None:
    chosen = select(scan_store(tmp_path / "store"), everything=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(AlreadyExistsError, match=f"{name} exists, and an export replaces nothing"):
            export(chosen, "nifti", tmp_path / name, silent)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="lies in the store"):
        export(chosen, "nifti", tmp_path / "store" / "out", silent)
    with pytest.raises(InputError, match="expected one of nifti, dicom, ome-zarr"):
        export(chosen, "png", tmp_path / "out", silent)


def test_a_folder_that_appears_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    def made_by_another(done: int, total: int) -> None:
        if done == total:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("theirs")

    with pytest.raises(AlreadyExistsError, match="made by someone else meanwhile"):
        export(select(scan_store(tmp_path / "store"), everything=True), "dicom", tmp_path / "out", made_by_another)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store"]


@pytest.mark.parametrize("format", ["nifti", "dicom", "ome-zarr"])
def test_a_killed_export_leaves_nothing_that_looks_finished(tmp_path: Path, format: str) -> None:
    chosen = select(two_patients(tmp_path / "store"), everything=True)
    ours = tuple(str(REPOSITORY / name) for name in ("tasks/export", "storage/exports"))
    number, killed = 1, 0
    while killed_at(number, ours, lambda: export(chosen, format, tmp_path / "out", silent)) != 0:
        killed += 1
        if (tmp_path / "out").exists():  # killed after the rename
            assert len(Export.load(tmp_path / "out").volumes) == 3
            (tmp_path / "out").rename(tmp_path / f"whole-{number}")
        number = number + 1 + number // 3
    assert killed > 5
    assert len(Export.load(tmp_path / "out").volumes) == 3
    assert [
        path.name for path in tmp_path.iterdir() if path.name.startswith(".")
    ] == []  # the next export removes leftovers


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    store = scan_store(tmp_path / "store")
    chosen = select(store, everything=True)
    shard = next(p for p in (store.folder(SCAN) / "0").rglob("*") if p.is_file() and p.name != "zarr.json")
    shard.write_bytes(shard.read_bytes()[:-1])
    for format in ("nifti", "dicom", "ome-zarr"):
        with pytest.raises(Exception, match="bytes"):
            export(chosen, format, tmp_path / "out", silent)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_file_of_the_store_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = scan_store(tmp_path / "store")
    shard = next(p for p in (store.folder(SCAN) / "0").rglob("*") if p.is_file() and p.name != "zarr.json")
    shard.unlink()
    shard.symlink_to(shard.name)  # a circle
    with pytest.raises(UnreadableError, match=f"{shard.name} cannot be read"):
        export(select(VolumeStore.open(store.path), everything=True), "dicom", tmp_path / "out", silent)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    chosen = select(scan_store(tmp_path / "store"), everything=True)
    with small_disk(tmp_path / "disk", 20) as disk:
        for format in ("nifti", "dicom", "ome-zarr"):
            with pytest.raises(UnwritableError, match="cannot be written: no space is left"):
                export(chosen, format, disk / "out", silent)
        assert [path.name for path in disk.iterdir() if path.name != "lost+found"] == []


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    made = export(select(scan_store(tmp_path / "s"), everything=True), "nifti", tmp_path / "out", silent)
    assert made.volumes[0].digest == f"sha256:{sha256_file(tmp_path / 'out' / made.volumes[0].path)}"
