"""The cache of training volumes: the same volumes from memory, disk, another process's cache, or none."""

import gc
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.errors import DamagedArtifactError, MissingArtifactError, UnwritableError
from storage.volume_store import VolumeStore
from tasks.train.augmentation import Augmentation, Change
from tasks.train.cache import SharedCache
from tasks.train.data import ViewDataset
from tests.unit.tasks.loader_data import SHAPES, damage, dataset, write_store

CHANGES = [Change(), Change((4, 0, -8)), Change(flip=True, offset_hu=20.0, gain=1.1)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("cache") / "store")


def volumes(data: ViewDataset) -> torch.Tensor:
    """Every volume, unchanged and changed, twice: out of the store, then out of the cache where it has a place."""
    rounds = [torch.stack([data.get(i, change) for i in range(len(data)) for change in CHANGES]) for _ in (1, 2)]
    assert torch.equal(*rounds)
    return rounds[0]


@pytest.mark.parametrize("mapping", ["window", "published-lidc"])
@pytest.mark.parametrize("size", [32, 16, 8])
def test_the_cache_does_not_change_volumes(store: Path, size: int, mapping: str, tmp_path: Path) -> None:
    expected = volumes(dataset(store, size, cache_mb=0, mapping=mapping))
    assert torch.equal(volumes(dataset(store, size, mapping=mapping)), expected)
    on_disk = dataset(store, size, mapping=mapping, cache_dir=tmp_path / "cache")
    assert torch.equal(volumes(on_disk), expected)
    assert not list((tmp_path / "cache").iterdir())  # nothing that a killed training could leave
    shared = dataset(store, size, mapping=mapping, cache_address=on_disk.cache_address)
    assert torch.equal(volumes(shared), expected)


def test_a_window_sees_what_the_store_reads(store: Path) -> None:
    """By hand, for a shifted box: the store's own view around the moved centre."""
    shape = SHAPES[1]
    centre = (shape[0] // 2 + 4, shape[1] // 2, shape[2] // 2 - 8)
    hu = VolumeStore.open(store).read_view("v1", 16, 32, centre)
    expected = torch.from_numpy(np.clip(hu / 1000, -1, 1))
    torch.testing.assert_close(dataset(store).get(1, Change((4, 0, -8)))[0], expected, atol=1e-6, rtol=0)


def test_what_is_cached_is_not_read_again(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    data = dataset(path)
    expected = volumes(data)
    for level in (0, 1, 2):
        for number in range(len(SHAPES)):
            damage(path, f"v{number}", level)
    assert torch.equal(volumes(data), expected)
    with pytest.raises(DamagedArtifactError, match="SHA-256 differs"):
        dataset(path).get(0)


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    path = write_store(tmp_path / "store")
    shard = damage(path, "v3", 1)
    shard.unlink()
    data = dataset(path)
    data.get(2)
    with pytest.raises(MissingArtifactError, match=f"{shard} is missing: volume v3 was committed with it"):
        data.get(3)


def test_a_volume_is_checked_once_by_all_that_share_a_cache(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[tuple[str, int]] = []
    check = VolumeStore.check_level

    def counting(self: VolumeStore, volume_id: str, level: int) -> None:
        checked.append((volume_id, level))
        check(self, volume_id, level)

    monkeypatch.setattr(VolumeStore, "check_level", counting)
    first = dataset(store, cache_mb=0)
    volumes(first)
    volumes(dataset(store, cache_mb=0, cache_address=first.cache_address))
    assert sorted(checked) == [(f"v{number}", 1) for number in range(len(SHAPES))]


def test_the_first_arrays_have_a_place_until_it_is_full() -> None:
    cache = SharedCache([(1000,), (5000,), (500,), (100,)], np.int16, 3 * 4096)
    assert [index in cache for index in range(4)] == [True, False, True, True]
    for index, length in enumerate([1000, 5000, 500, 100]):
        assert cache.get(index) is None
        cache.put(index, np.full(length, index, np.int16))
    found = [cache.get(index) for index in range(4)]
    assert found[1] is None
    for index, length in ((0, 1000), (2, 500), (3, 100)):
        np.testing.assert_array_equal(found[index], np.full(length, index, np.int16))
    assert not cache.touched(2)
    cache.touch(2)
    assert [cache.touched(index) for index in range(4)] == [False, False, True, False]
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 1  # type: ignore[index]


def test_one_process_at_a_time_fills_a_place(tmp_path: Path) -> None:
    """A forked process that wants what this one has locked waits, and then finds it."""
    cache = SharedCache([(4,)], np.int16, 4096, tmp_path)
    reading, writing = os.pipe()
    with cache.locked(0):
        if not (pid := os.fork()):
            with cache.locked(0):
                found = cache.get(0)
                os.write(writing, b"lost" if found is None else bytes(found.astype(np.uint8)))
            os._exit(0)
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 4)
        cache.put(0, np.array([1, 2, 3, 4], np.int16))
    os.waitpid(pid, 0)
    assert os.read(reading, 4) == bytes([1, 2, 3, 4])
    os.close(reading)
    os.close(writing)


def cache_descriptors() -> list[str]:
    """Open files of caches in memory; the process has others, whose number changes with its threads."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # another thread closed it meanwhile
            targets.append(str(descriptor.readlink()))
    return [target for target in targets if "prdit-cache" in target]


def test_memory_and_descriptor_are_freed(store: Path) -> None:
    gc.collect()
    before = len(cache_descriptors())
    data = dataset(store)
    data.get(0)
    assert len(cache_descriptors()) > before
    del data
    gc.collect()
    assert len(cache_descriptors()) == before


def test_a_folder_without_room_is_refused_at_the_start(store: Path) -> None:
    with pytest.raises(UnwritableError, match=r"cache_dir /proc/nowhere cannot take a file .* smaller cache_mb"):
        dataset(store, cache_dir=Path("/proc/nowhere"))


def test_memory_is_left_to_the_training(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tasks.run.machine import Share

    monkeypatch.setattr("tasks.train.data.memory_available", lambda: Share(80_000, 80_000, "machine"))
    data = dataset(store, augmentation=Augmentation())
    assert [index in data._cache for index in range(5)] == [True, True, False, False, False]
    assert "half of what is free; cache_dir puts it on a local disk" in caplog.text
    shared = dataset(store, cache_address=data.cache_address)  # has the same places, whatever it was asked for
    assert [index in shared._cache for index in range(5)] == [True, True, False, False, False]
    assert torch.equal(volumes(shared), volumes(dataset(store, cache_mb=0)))
