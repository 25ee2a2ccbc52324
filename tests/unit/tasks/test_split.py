"""Split: by patient, sticky, no patient in two roles."""

import json
from pathlib import Path

import numpy as np
import pytest

from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.split.config import SplitConfig
from tasks.split.run import ledger_agrees, place_patients, split


def add(store: VolumeStore, volume_id: str, patient: str | None) -> None:
    attributes = {"patient_key": patient, "patient_known": True} if patient else {}
    hu = np.full((4, 4, 4), 7, np.int16)
    store.write(Volume(hu, (1.0,) * 3, (0.0,) * 3), volume_id=volume_id, attributes=attributes)


def make(tmp_path: Path, patients: int, scans: int = 2) -> VolumeStore:
    store = VolumeStore.create(tmp_path / "store", num_levels=1)
    for p in range(patients):
        for s in range(scans):
            add(store, f"v{p}-{s}", f"patient{p}")
    return store


def read(directory: Path) -> dict:
    return json.loads((directory / "split.json").read_text())


@pytest.mark.parametrize(("patients", "held"), [(1, 0), (2, 1), (3, 1), (10, 2), (20, 4)])
def test_counts_and_no_patient_in_two_roles(tmp_path: Path, patients: int, held: int) -> None:
    store = make(tmp_path, patients)
    split(store.path, SplitConfig(), tmp_path)
    result = read(tmp_path)
    assert len(result["patients"]["val"]) == held
    train, val = (set(result["roles"][role]) for role in ("train", "val"))
    assert train | val == set(store.volume_ids())
    assert not {v.split("-")[0] for v in train} & {v.split("-")[0] for v in val}


def test_roles_never_change_when_patients_come(tmp_path: Path) -> None:
    store = make(tmp_path, 4)
    split(store.path, SplitConfig(), tmp_path / "1")
    assert ledger_agrees(store.path, tmp_path / "1", SplitConfig())
    for p in range(4, 30):
        add(store, f"v{p}", f"patient{p}")
    assert not ledger_agrees(store.path, tmp_path / "1", SplitConfig())
    split(store.path, SplitConfig(seed=5, val_fraction=0.5), tmp_path / "2")
    before, after = read(tmp_path / "1")["patients"], read(tmp_path / "2")["patients"]
    for role in ("train", "val"):
        assert set(before[role]) <= set(after[role])
    assert len(after["val"]) == 15


def test_seed_decides_and_repeats(tmp_path: Path) -> None:
    new = [f"p{k}" for k in range(40)]
    one = place_patients(new, [], {}, SplitConfig(seed=1))
    assert one == place_patients(new[::-1], [], {}, SplitConfig(seed=1))
    assert one != place_patients(new, [], {}, SplitConfig(seed=2))
    assert set(place_patients(["b"], ["a"], {"a": "val"}, SplitConfig()).values()) == {"train"}
    assert set(place_patients(["b"], ["a"], {"a": "train"}, SplitConfig()).values()) == {"val"}


def test_a_lost_ledger_or_other_split_is_noticed(tmp_path: Path) -> None:
    store = make(tmp_path, 4)
    split(store.path, SplitConfig(), tmp_path)
    other = read(tmp_path)
    other["roles"]["val"], other["roles"]["train"] = other["roles"]["train"], other["roles"]["val"]
    (tmp_path / "split.json").write_text(json.dumps(other))
    assert not ledger_agrees(store.path, tmp_path, SplitConfig())


def test_unknown_patients_are_said_aloud_and_an_empty_store_refused(tmp_path: Path) -> None:
    store = VolumeStore.create(tmp_path / "store", num_levels=1)
    with pytest.raises(ValueError, match="no committed volume"):
        split(store.path, SplitConfig(), tmp_path)
    add(store, "a", None)
    add(store, "b", None)
    split(store.path, SplitConfig(), tmp_path)
    assert "2 of 2 volumes carry no PatientID" in read(tmp_path)["notes"][0]
    assert len(read(tmp_path)["roles"]["val"]) == 1
