"""Snapshots: immutable, found by digest, never lost to another writer; what a store lists changes without touching a volume."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.artifacts import Ref
from storage.documents.snapshot import Snapshot, SnapshotVolume
from storage.errors import DamagedArtifactError, InputError, MissingArtifactError, VersionError
from storage.geometry import Volume
from storage.snapshots import (
    allow_again,
    find,
    history,
    list_all,
    listing,
    load_snapshot,
    newest,
    open_snapshot,
    withdraw,
)
from storage.volume_store import VolumeStore


def put(store: VolumeStore, name: str) -> None:
    store.write(Volume(np.zeros((4, 4, 4), np.int16), (1.0,) * 3, (0.0,) * 3), volume_id=name, attributes={})


def listed(patient: str = "p", **labels: str) -> SnapshotVolume:
    return SnapshotVolume(
        patient_key=patient, patient_known=True, shape=(4, 4, 4), attributes={"KVP": 120.0}, labels=labels
    )


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    made = VolumeStore.create(tmp_path / "s", num_levels=1)
    for name in "abc":
        put(made, name)
    return made


def test_a_digest_means_the_list_and_nothing_else(store: VolumeStore, tmp_path: Path) -> None:
    one = list_all(store, {"a": listed(), "b": listed("q")}, "first")
    other = VolumeStore.create(tmp_path / "elsewhere", num_levels=1)
    for name in "ba":
        put(other, name)
    two = list_all(other, {"b": listed("q")}, "b first")
    two = list_all(other, {"a": listed()}, "then a")
    assert one.digest == two.digest
    assert list_all(store, {"a": listed(nodule="yes")}, "labels").digest != one.digest
    assert list_all(store, {"a": listed("another patient")}, "patients").digest != one.digest
    assert list_all(store, {"a": listed()}, "back").digest == one.digest  # the same list again is the same snapshot


def test_an_old_reference_keeps_its_meaning(store: VolumeStore) -> None:
    old = list_all(store, {"a": listed(), "b": listed("q")}, "first")
    before = load_snapshot(old)
    list_all(store, {"a": listed(nodule="yes"), "c": listed("r")}, "more")
    withdraw(store, ["b"])
    assert load_snapshot(old) == before
    opened, snapshot = open_snapshot(old)
    assert list(snapshot.volumes) == ["a", "b"]
    assert opened.read_level("b").hu.shape == (4, 4, 4)
    assert load_snapshot(newest(store)).patients == {"p": ["a"], "r": ["c"]}
    assert [history(store.path).read(n).num_volumes for n in (1, 2, 3)] == [2, 3, 2]


def test_nothing_changed_is_no_new_step(store: VolumeStore) -> None:
    one = list_all(store, {"a": listed()}, "first")
    assert list_all(store, {"a": listed()}, "again") == one
    assert history(store.path).numbers() == [1]


def test_withdrawn_volumes_are_taken_back_only_when_asked(store: VolumeStore) -> None:
    list_all(store, {"a": listed(), "b": listed()}, "first")
    with pytest.raises(InputError, match="x is not listed"):
        withdraw(store, ["x"])
    once = withdraw(store, ["b"])
    assert listing(store).withdrawn == {"b"}
    assert withdraw(store, ["b"]) == once
    assert history(store.path).numbers() == [1, 2]
    with pytest.raises(InputError, match="a: not withdrawn"):
        allow_again(store, ["a"])
    allow_again(store, ["b"])
    assert listing(store).withdrawn == frozenset()
    assert store.volume_ids() == ["a", "b", "c"]  # the pool keeps them all


def test_found_by_number_and_by_the_beginning_of_the_digest(store: VolumeStore) -> None:
    one = list_all(store, {"a": listed()}, "first")
    two = list_all(store, {"b": listed()}, "second")
    assert find(store, "1") == one
    assert find(store, "2") == two
    assert find(store, one.digest) == one
    assert find(store, one.digest.removeprefix("sha256:")[:8]) == one
    for name in ("3", "abc", "0" * 64):
        with pytest.raises(InputError, match="prdit ls"):
            find(store, name)


def test_a_store_without_any_snapshot_says_so(store: VolumeStore) -> None:
    with pytest.raises(MissingArtifactError, match="no ingest has finished"):
        newest(store)


def test_only_committed_volumes_are_listed(store: VolumeStore) -> None:
    with pytest.raises(MissingArtifactError, match="not committed"):
        list_all(store, {"z": listed()}, "first")
    assert history(store.path).numbers() == []


def test_a_volume_the_store_lost_is_named(store: VolumeStore) -> None:
    ref = list_all(store, {"a": listed(), "b": listed()}, "first")
    (store.path / "commits" / "b.json").unlink()
    with pytest.raises(MissingArtifactError, match=r"lists 1 volume.*lost \(first: b\).*--repair"):
        open_snapshot(ref)


def file_of(ref: Ref) -> Path:
    return ref.path / "snapshots" / f"{ref.digest.removeprefix('sha256:')}.json"


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damage_and_other_versions_are_one_sentence(store: VolumeStore) -> None:
    ref = list_all(store, {"a": listed()}, "first")
    good = file_of(ref).read_text()
    file_of(ref).write_text(good.replace('"p"', '"q"'))
    with pytest.raises(DamagedArtifactError, match="another hash"):
        load_snapshot(ref)
    file_of(ref).write_text(good[:50])
    with pytest.raises(DamagedArtifactError, match="no complete JSON"):
        load_snapshot(ref)
    file_of(ref).write_text(good)
    edited(file_of(ref), format_version=Snapshot.FORMAT + 1)
    with pytest.raises(VersionError, match="Update prdit"):
        load_snapshot(ref)
    file_of(ref).unlink()
    with pytest.raises(MissingArtifactError, match="No snapshot of a volume store"):
        load_snapshot(ref)
    with pytest.raises(InputError, match="got a split"):
        load_snapshot(ref.model_copy(update={"kind": "split"}))


def _list_one(path: str, turn: Any, name: str) -> None:
    store = VolumeStore.open(Path(path))
    turn.wait()
    list_all(store, {name: listed(name)}, f"process {name}")


def test_writers_at_once_lose_nothing(store: VolumeStore) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(3, mp_context=context) as pool:
        for attempt in range(5):
            path = store.path.with_name(f"s{attempt}")
            other = VolumeStore.create(path, num_levels=1)
            for name in "abc":
                put(other, name)
            list(pool.map(_list_one, [str(path)] * 3, [manager.Barrier(3)] * 3, "abc"))
            assert sorted(load_snapshot(newest(other)).volumes) == ["a", "b", "c"]
            assert history(path).numbers() == [1, 2, 3]
