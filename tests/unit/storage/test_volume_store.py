"""The volume store: pyramids against a float64 oracle, damage found, views, formats."""

import json
import multiprocessing
import pickle
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ngff_zarr
import numpy as np
import pytest
from ngff_zarr.rfc4 import anatomical_orientation_to_itk_direction

from storage.errors import DamagedArtifactError, MissingArtifactError, StorageError, StoreFormatError, VersionError
from storage.geometry import AIR_HU, Volume
from storage.repair import restore_root
from storage.volume_store import VolumeStore

SHAPE = (70, 81, 66)


def smooth_hu(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(-300, 500, shape), -1024, 2000).astype(np.int16)


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    made = VolumeStore.create(tmp_path / "s")
    made.write(Volume(smooth_hu(), (1.0,) * 3, (-10.0, 20.0, 30.5)), volume_id="a", attributes={"KVP": 120.0})
    return made


def oracle_level(hu: np.ndarray, factor: int) -> np.ndarray:
    """Block means in float64 of the volume padded with air, rounded half to even, voxel by voxel."""
    padded = np.pad(hu, [(0, -n % factor) for n in hu.shape], constant_values=AIR_HU).astype(np.float64)
    d, h, w = (n // factor for n in padded.shape)
    out = np.empty((d, h, w))
    for k, j, i in np.ndindex(d, h, w):
        block = padded[k * factor : (k + 1) * factor, j * factor : (j + 1) * factor, i * factor : (i + 1) * factor]
        out[k, j, i] = np.rint(block.sum() / factor**3)
    return out


def test_levels_are_block_means_of_level_0(store: VolumeStore) -> None:
    hu = store.read_level("a", 0).hu
    np.testing.assert_array_equal(hu, smooth_hu())
    for level in (1, 2):
        np.testing.assert_array_equal(store.read_level("a", level).hu, oracle_level(hu, 2**level))


def test_half_a_unit_rounds_to_even(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "s", num_levels=2)
    hu = np.zeros((2, 2, 8), np.int16)
    hu[:, :, 0:2] = np.array([0, 1])  # mean 0.5 -> 0
    hu[:, :, 2:4] = np.array([1, 2])  # 1.5 -> 2
    hu[:, :, 4:6] = np.array([-1, 0])  # -0.5 -> 0
    hu[:, :, 6:8] = np.array([-2, -1])  # -1.5 -> -2
    store.write(Volume(hu, (1.0,) * 3, (0.0,) * 3), volume_id="a", attributes={})
    assert store.read_level("a", 1).hu.ravel().tolist() == [0, 2, 0, -2]


def test_coarse_levels_carry_their_half_voxel(store: VolumeStore) -> None:
    coarse = store.read_level("a", 2)
    assert coarse.spacing_mm == (4.0, 4.0, 4.0)
    assert coarse.origin_mm == (-8.5, 21.5, 32.0)  # 1.5 mm = mean of the first four voxel centres


def test_an_independent_reader_sees_the_same(store: VolumeStore) -> None:
    scales = ngff_zarr.from_ngff_zarr(str(store.folder("a")), validate=True)
    assert len(scales.images) == 3
    for level, image in enumerate(scales.images):
        mine = store.read_level("a", level)
        np.testing.assert_array_equal(np.asarray(image.data), mine.hu)
        assert image.dims == ("z", "y", "x") or list(image.dims) == ["z", "y", "x"]
        assert tuple(image.scale[a] for a in "xyz") == mine.spacing_mm
        assert tuple(image.translation[a] for a in "xyz") == mine.origin_mm
        assert set(image.axes_units.values()) == {"millimeter"}
        assert {axis: str(found.value) for axis, found in image.axes_orientations.items()} == {
            "x": "right-to-left",
            "y": "anterior-to-posterior",
            "z": "inferior-to-superior",
        }


def test_another_reader_turns_the_axes_as_dicom_does(store: VolumeStore) -> None:
    """The direction matrix of ITK and DICOM: where x, y, z lead in LPS, so the identity."""
    image = ngff_zarr.from_ngff_zarr(str(store.folder("a"))).images[0]
    columns = [anatomical_orientation_to_itk_direction(image.axes_orientations[axis].value) for axis in "xyz"]
    np.testing.assert_array_equal(np.array(columns).T, np.eye(3))


def shard(store: VolumeStore, level: int) -> Path:
    return next(p for p in (store.folder("a") / str(level)).rglob("*") if p.is_file() and p.name != "zarr.json")


def test_every_flipped_byte_is_found(store: VolumeStore) -> None:
    path = shard(store, 0)
    good = path.read_bytes()
    for position in np.random.default_rng(1).integers(0, len(good), 20):
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bytes(bad))
        with pytest.raises(DamagedArtifactError, match="a"):
            store.verify("a")
        with pytest.raises(DamagedArtifactError, match="decoded"):
            VolumeStore.open(store.path).read_level("a", 0)
    path.write_bytes(good)
    store.verify("a")


def test_a_lost_shard_is_an_error_and_not_air(store: VolumeStore) -> None:
    shard(store, 1).unlink()
    with pytest.raises(MissingArtifactError, match="missing"):
        store.read_level("a", 1)
    with pytest.raises(MissingArtifactError, match="missing"):
        store.read_view("a", 32, edge=64)
    with pytest.raises(MissingArtifactError, match="missing"):
        store.verify("a")


def test_a_volume_of_air_has_its_shards(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "s", spacing_mm=8, num_levels=1, interpolation="none")
    air = Volume(np.full((16, 16, 16), AIR_HU, np.int16), (8.0,) * 3, (0.0,) * 3)
    store.write(air, volume_id="g-0", attributes={"seed": 1})
    store.verify("g-0")
    assert [n for n in store.commit_record("g-0").files if "/c/" in n]


def test_without_commit_record_there_is_no_volume(store: VolumeStore) -> None:
    (store.path / "commits" / "a.json").unlink()
    fresh = VolumeStore.open(store.path)
    assert fresh.volume_ids() == []
    with pytest.raises(MissingArtifactError, match="not committed"):
        fresh.read_level("a")
    assert fresh.write(Volume(smooth_hu(), (1.0,) * 3, (0.0,) * 3), volume_id="a", attributes={})
    fresh.verify("a")


def test_a_writer_stopped_midway_leaves_nothing(store: VolumeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("storage.volume_store.fsync_tree", stopped)
    volume = Volume(smooth_hu(seed=3), (1.0,) * 3, (0.0,) * 3)
    with pytest.raises(KeyboardInterrupt):
        store.write(volume, volume_id="b", attributes={})
    assert store.volume_ids() == ["a"]
    assert len(list((store.path / "volumes").iterdir())) == 2  # zarr.json and "a"
    monkeypatch.undo()
    assert store.write(volume, volume_id="b", attributes={})
    np.testing.assert_array_equal(store.read_level("b").hu, volume.hu)


def test_files_and_folders_are_durable_before_the_record_is(
    store: VolumeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noting(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(store.path.resolve()).as_posix())

    monkeypatch.setattr("storage.files.os.fsync", noting)
    store.write(Volume(smooth_hu((8, 8, 8)), (1.0,) * 3, (0.0,) * 3), volume_id="b", attributes={})
    kinds = [re.sub(r"volumes/\.b\.[^/]*", "volumes/b", re.sub(r"/\.b\.json\..*", "/b.json", name)) for name in order]
    assert kinds[-3:] == ["volumes", "commits/b.json", "commits"]
    assert kinds.index("volumes/b") == len(kinds) - 4  # the folder after everything in it
    assert {"volumes/b/0/c/0/0/0", "volumes/b/0/zarr.json", "volumes/b/zarr.json"} <= set(kinds)
    assert kinds.index("volumes/b/0/c/0/0/0") < kinds.index("volumes/b/0/c/0/0") < kinds.index("volumes/b/0")


def flip_shape(path: Path) -> None:
    """Another shape in as many bytes, as an editor or a bad disk could leave it."""
    text = path.read_text()
    changed = re.sub(r'"shape": \[\s*(\d+)', lambda m: m[0][:-1] + str((int(m[0][-1]) + 1) % 10), text, count=1)
    assert changed != text
    assert len(changed) == len(text)
    path.write_text(changed)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_metadata_edited_at_equal_size_are_never_read(store: VolumeStore, level: int) -> None:
    flip_shape(store.folder("a") / str(level) / "zarr.json")
    fresh = VolumeStore.open(store.path)
    with pytest.raises(DamagedArtifactError, match="changed after it was committed"):
        fresh.read_level("a", level)
    with pytest.raises(DamagedArtifactError, match="changed after it was committed"):
        fresh.read_view("a", 64 // 2**level, 64)
    with pytest.raises(DamagedArtifactError, match="changed after it was committed"):
        store.verify("a")


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "an object": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text("[]"),
    "another volume's": lambda path: path.write_text(path.read_text().replace('"volume_id": "a"', '"volume_id": "b"')),
    "without metadata": lambda path: path.write_text(path.read_text().replace('"0/zarr.json"', '"0/zarr.jsom"')),
    "of a folder outside": lambda path: path.write_text(
        re.sub(r'"folder": "[^"]*"', '"folder": "../../x"', path.read_text())
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_one_sentence(store: VolumeStore, damage: str) -> None:
    DAMAGE[damage](store.path / "commits" / "a.json")
    fresh = VolumeStore.open(store.path)
    assert fresh.volume_ids() == ["a"]
    with pytest.raises(DamagedArtifactError) as found:
        fresh.read_level("a")
    assert str(store.path / "commits" / "a.json") in str(found.value)
    assert "--repair" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("what", ["shard", "metadata", "record", "record lost", "folder lost", *DAMAGE])
def test_repair_brings_back_what_was_committed(store: VolumeStore, what: str) -> None:
    record, before = store.path / "commits" / "a.json", store.commit_record("a")
    if what == "shard":
        path = shard(store, 1)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif what == "metadata":
        flip_shape(store.folder("a") / "0" / "zarr.json")
    elif what == "folder lost":
        shutil.rmtree(store.folder("a"))
    elif what == "record lost":
        record.unlink()
    else:
        DAMAGE.get(what, DAMAGE["truncated"])(record)
    broken = VolumeStore.open(store.path)
    with pytest.raises(StorageError):
        broken.verify("a")
    broken.repair(Volume(smooth_hu(), (1.0,) * 3, (-10.0, 20.0, 30.5)), volume_id="a", attributes={"KVP": 120.0})
    broken.verify("a")
    assert VolumeStore.open(store.path).commit_record("a") == before
    assert len(list((store.path / "volumes").iterdir())) == 2


def test_repair_does_not_put_other_values_in_place(store: VolumeStore) -> None:
    before = store.commit_record("a")
    with pytest.raises(DamagedArtifactError, match="other values"):
        store.repair(Volume(smooth_hu(seed=1), (1.0,) * 3, (0.0,) * 3), volume_id="a", attributes={})
    assert VolumeStore.open(store.path).commit_record("a") == before
    store.verify("a")


def test_a_lost_root_is_written_again(store: VolumeStore) -> None:
    text = (store.path / "zarr.json").read_text()
    (store.path / "zarr.json").unlink()
    with pytest.raises(MissingArtifactError, match="--repair"):
        VolumeStore.open(store.path)
    with pytest.raises(MissingArtifactError, match="--repair"):  # not taken for an empty folder
        VolumeStore.create(store.path)
    with pytest.raises(StoreFormatError, match=r"3 levels, the settings say 1\.0 mm and 2"):
        restore_root(store.path, store.grid.model_copy(update={"num_levels": 2}))
    restore_root(store.path, store.grid)
    assert (store.path / "zarr.json").read_text() == text
    VolumeStore.open(store.path).verify("a")


def test_what_a_killed_creator_left_does_not_matter(tmp_path: Path) -> None:
    for name in ("nothing", "folder", "group"):
        path = tmp_path / name
        if name != "nothing":
            (path / "volumes").mkdir(parents=True)
        if name == "group":
            (path / "volumes" / "zarr.json").write_text("{}")
            (path / ".zarr.json.0123abcd-1-1-89abcdef.tmp").write_text("half")
        VolumeStore.create(path)
        assert VolumeStore.open(path).volume_ids() == []


def _create_and_write(path: str, turn: Any, index: int) -> bool:
    turn.wait()
    store = VolumeStore.create(Path(path), num_levels=2)
    volume = Volume(smooth_hu((24, 24, 24)), (1.0,) * 3, (0.0,) * 3)
    written = store.write(volume, volume_id="shared", attributes={})
    store.write(volume, volume_id=f"own-{index}", attributes={})
    return written


def test_of_several_writers_of_one_volume_one_commits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(3, mp_context=context) as pool:
        for attempt in range(5):
            turn = manager.Barrier(3)
            path = tmp_path / str(attempt)
            written = list(pool.map(_create_and_write, [str(path)] * 3, [turn] * 3, range(3)))
            assert sorted(written) == [False, False, True]
            store = VolumeStore.open(path)
            assert store.volume_ids() == ["own-0", "own-1", "own-2", "shared"]
            for volume_id in store.volume_ids():
                store.verify(volume_id)
            assert len(list((path / "volumes").iterdir())) == 5  # four volumes and zarr.json


def test_writing_a_committed_id_changes_nothing(store: VolumeStore) -> None:
    before = (store.path / "commits" / "a.json").read_bytes()
    assert not store.write(Volume(smooth_hu(seed=9), (1.0,) * 3, (0.0,) * 3), volume_id="a", attributes={})
    assert (store.path / "commits" / "a.json").read_bytes() == before


def padded_box(hu: np.ndarray, edge: int) -> np.ndarray:
    """The centred box by padding generously and cutting, starts in steps of 4."""
    starts = [int(np.floor((n / 2 - edge / 2) / 4 + 0.5)) * 4 for n in hu.shape]
    big = np.pad(hu, edge, constant_values=AIR_HU).astype(np.float64)
    return big[tuple(slice(s + edge, s + 2 * edge) for s in starts)]


@pytest.mark.parametrize(("size", "edge"), [(64, 64), (96, 96), (24, 96), (12, 96), (48, 96), (32, 96), (16, 48)])
def test_view_is_the_mean_of_the_centred_box(store: VolumeStore, size: int, edge: int) -> None:
    factor = edge // size
    box = padded_box(smooth_hu(), edge)
    expected = box.reshape(size, factor, size, factor, size, factor).mean(axis=(1, 3, 5))
    view = store.read_view("a", size, edge)
    assert view.dtype == np.float32
    tolerance = 0 if factor == 1 else 0.501  # a stored level is rounded to whole HU
    np.testing.assert_allclose(view, expected, atol=tolerance)


def test_view_centre(store: VolumeStore) -> None:
    view = store.read_view("a", 16, 16, centre=(24, 32, 40))
    np.testing.assert_array_equal(view, smooth_hu()[16:32, 24:40, 32:48])


def test_small_view_reads_a_part_of_the_shard(store: VolumeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[slice, ...]] = []
    original = VolumeStore._read
    monkeypatch.setattr(
        VolumeStore, "_read", lambda self, array, where, v: seen.append(where) or original(self, array, where, v)
    )
    store.read_view("a", 8, 8)
    assert [s.stop - s.start for s in seen[0]] == [8, 8, 8]


@pytest.mark.parametrize(("size", "edge"), [(48, 100), (0, 64), (128, 64)])
def test_impossible_view_says_what_would_work(store: VolumeStore, size: int, edge: int) -> None:
    with pytest.raises(ValueError, match="multiple of size"):
        store.read_view("a", size, edge)


def test_other_grid_or_format_is_refused(store: VolumeStore) -> None:
    with pytest.raises(StoreFormatError, match=r"spacing_mm 0\.8 \(store: 1\.0\)"):
        VolumeStore.create(store.path, spacing_mm=0.8)
    with pytest.raises(ValueError, match="spacing"):
        store.write(Volume(smooth_hu(), (2.0,) * 3, (0.0,) * 3), volume_id="b", attributes={})
    document = json.loads((store.path / "zarr.json").read_text())
    document["attributes"]["prdit"]["format_version"] = 99
    (store.path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(VersionError, match=r"format_version 99.*Update prdit"):
        VolumeStore.open(store.path)
    document["attributes"]["prdit"]["format_version"] = 1
    (store.path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(VersionError, match=r"format_version 1;.*Ingest the scans into a new store"):
        VolumeStore.open(store.path)
    (store.path / "zarr.json").write_text("{}")
    with pytest.raises(DamagedArtifactError, match="not the root"):
        VolumeStore.open(store.path)


def test_a_strange_folder_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(StoreFormatError, match="not a volume store"):
        VolumeStore.create(tmp_path)


@pytest.mark.parametrize("bad", ["", "../x", ".hidden", "a/b"])
def test_ids_stay_inside_the_store(store: VolumeStore, bad: str) -> None:
    with pytest.raises(ValueError, match="unusable"):
        store.write(Volume(smooth_hu(), (1.0,) * 3, (0.0,) * 3), volume_id=bad, attributes={})


def test_a_store_travels_to_workers(store: VolumeStore) -> None:
    before = len(pickle.dumps(VolumeStore.open(store.path)))
    store.read_view("a", 8, 8)
    sent = pickle.dumps(store)
    assert len(sent) <= before + 200  # whatever was read: each of many tasks has the store
    copy = pickle.loads(sent)  # noqa: S301 - what a DataLoader worker does
    np.testing.assert_array_equal(copy.read_view("a", 8, 8), store.read_view("a", 8, 8))
