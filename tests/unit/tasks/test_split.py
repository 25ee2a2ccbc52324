"""Split: by patient, sticky, no patient in two roles."""

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.artifacts import Ref
from storage.documents.snapshot import SnapshotVolume
from storage.documents.split import Split
from storage.errors import DamagedArtifactError, InputError
from storage.geometry import Volume
from storage.snapshots import list_all, withdraw
from storage.volume_store import VolumeStore
from tasks.split.config import SplitConfig
from tasks.split.run import ledger_agrees, place_patients, split


def add(store: VolumeStore, volume_id: str, patient: str | None) -> Ref:
    """The snapshot of a store with one more volume."""
    store.write(Volume(np.full((4, 4, 4), 7, np.int16), (1.0,) * 3, (0.0,) * 3), volume_id=volume_id, attributes={})
    key = patient or f"of-{volume_id}"
    entry = SnapshotVolume(patient_key=key, patient_known=patient is not None, shape=(4, 4, 4))
    return list_all(store, {volume_id: entry}, "test")


def make(tmp_path: Path, patients: int, scans: int = 2) -> tuple[VolumeStore, Ref]:
    store = VolumeStore.create(tmp_path / "store", num_levels=1)
    for p in range(patients):
        for s in range(scans):
            snapshot = add(store, f"v{p}-{s}", f"patient{p}")
    return store, snapshot


@pytest.mark.parametrize(("patients", "held"), [(1, 0), (2, 1), (3, 1), (10, 2), (20, 4)])
def test_counts_and_no_patient_in_two_roles(tmp_path: Path, patients: int, held: int) -> None:
    store, snapshot = make(tmp_path, patients)
    split(snapshot, SplitConfig(), tmp_path)
    result = Split.load(tmp_path)
    assert len(result.patients["val"]) == held
    train, val = (set(result.roles[role]) for role in ("train", "val"))
    assert train | val == set(store.volume_ids())
    assert not {v.split("-")[0] for v in train} & {v.split("-")[0] for v in val}


def test_roles_never_change_when_patients_come(tmp_path: Path) -> None:
    store, old = make(tmp_path, 4)
    split(old, SplitConfig(), tmp_path / "1")
    for p in range(4, 30):
        new = add(store, f"v{p}", f"patient{p}")
    assert ledger_agrees(old, tmp_path / "1", SplitConfig())
    assert not ledger_agrees(new, tmp_path / "1", SplitConfig())
    split(new, SplitConfig(seed=5, val_fraction=0.5), tmp_path / "2")
    before, after = Split.load(tmp_path / "1").patients, Split.load(tmp_path / "2").patients
    for role in ("train", "val"):
        assert set(before[role]) <= set(after[role])
    assert len(after["val"]) == 15
    assert ledger_agrees(old, tmp_path / "1", SplitConfig())  # what was split before means what it meant
    split(old, SplitConfig(), tmp_path / "again")
    assert Split.load(tmp_path / "again") == Split.load(tmp_path / "1")


def test_a_volume_that_moves_to_another_patient_leaves_earlier_splits_alone(tmp_path: Path) -> None:
    store, old = make(tmp_path, 6, scans=1)
    split(old, SplitConfig(), tmp_path / "1")
    new = list_all(store, {"v0-0": SnapshotVolume(patient_key="patient1", patient_known=True, shape=(4, 4, 4))}, "test")
    split(new, SplitConfig(), tmp_path / "2")
    roles = Split.load(tmp_path / "2").roles
    assert any({"v0-0", "v1-0"} <= set(ids) for ids in roles.values())
    assert ledger_agrees(old, tmp_path / "1", SplitConfig())


def _split(snapshot: Ref, turn: Any, directory: Path) -> None:
    turn.wait()
    split(snapshot, SplitConfig(), directory)


def test_splits_at_once_agree(tmp_path: Path) -> None:
    _, snapshot = make(tmp_path, 20, scans=1)
    context = multiprocessing.get_context("spawn")
    folders = [tmp_path / str(number) for number in range(3)]
    with context.Manager() as manager, ProcessPoolExecutor(3, mp_context=context) as pool:
        list(pool.map(_split, [snapshot] * 3, [manager.Barrier(3)] * 3, folders))
    assert Split.load(folders[0]) == Split.load(folders[1]) == Split.load(folders[2])


def test_seed_decides_and_repeats(tmp_path: Path) -> None:
    new = [f"p{k}" for k in range(40)]
    one = place_patients(new, [], {}, SplitConfig(seed=1))
    assert one == place_patients(new[::-1], [], {}, SplitConfig(seed=1))
    assert one != place_patients(new, [], {}, SplitConfig(seed=2))
    assert set(place_patients(["b"], ["a"], {"a": "val"}, SplitConfig()).values()) == {"train"}
    assert set(place_patients(["b"], ["a"], {"a": "train"}, SplitConfig()).values()) == {"val"}


def test_a_lost_ledger_or_other_split_is_noticed(tmp_path: Path) -> None:
    store, snapshot = make(tmp_path, 4)
    split(snapshot, SplitConfig(), tmp_path)
    made = Split.load(tmp_path)
    swapped = {"train": made.roles["val"], "val": made.roles["train"]}
    made.model_copy(update={"roles": swapped}).save(tmp_path)
    assert not ledger_agrees(snapshot, tmp_path, SplitConfig())
    made.save(tmp_path)
    assert ledger_agrees(snapshot, tmp_path, SplitConfig())
    shutil.rmtree(store.path / "roles")
    assert not ledger_agrees(snapshot, tmp_path, SplitConfig())


def test_a_damaged_ledger_is_one_sentence(tmp_path: Path) -> None:
    store, snapshot = make(tmp_path, 4)
    split(snapshot, SplitConfig(), tmp_path)
    (store.path / "roles" / "default" / "00000001.json").write_text('{"format_version": 2, "roles": {"p": "test"}}')
    with pytest.raises(DamagedArtifactError, match=r"00000001\.json is no ledger of roles.*backup"):
        split(snapshot, SplitConfig(), tmp_path)


def test_unknown_patients_are_said_aloud_and_an_empty_list_refused(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store", num_levels=1)
    add(store, "a", None)
    snapshot = add(store, "b", None)
    split(snapshot, SplitConfig(), tmp_path)
    assert "2 of 2 volumes carry no PatientID" in Split.load(tmp_path).notes[0]
    assert len(Split.load(tmp_path).roles["val"]) == 1
    with pytest.raises(InputError, match="lists no volume"):
        split(withdraw(store, ["a", "b"]), SplitConfig(), tmp_path)
