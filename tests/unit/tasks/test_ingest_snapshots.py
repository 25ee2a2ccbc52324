"""What an ingest does to a store's list: tables corrected later, copies, withdrawals, damage; and what older snapshots keep."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from storage.documents.snapshot import SnapshotVolume
from storage.documents.verdicts import IngestReport
from storage.errors import MissingArtifactError, StorageError, StoreFormatError, VersionError
from storage.snapshots import allow_again, history, load_snapshot, newest, open_snapshot, withdraw
from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.store_damage import DAMAGE, flip
from tests.unit.storage.dicom_files import write_series

CONFIG = small_ingest(num_levels=2)


def run(source: Path, store: Path, *, repair: bool = False) -> IngestReport:
    return ingest(source, store, CONFIG, repair=repair, runner=Local(1))


def listed(store: Path) -> dict[str, SnapshotVolume]:
    return dict(load_snapshot(newest(VolumeStore.open(store))).volumes)


def slices(store: Path) -> list[int]:
    opened = VolumeStore.open(store)
    return sorted(opened.commit_record(volume_id).scan.num_slices for volume_id in listed(store))  # type: ignore[union-attr]


@pytest.fixture
def pixels_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scans whose pixels were read."""
    from tasks.ingest import scans

    calls: list[str] = []
    real = scans.ingest_series
    monkeypatch.setattr(scans, "ingest_series", lambda job: calls.append(job.scan.scan_id) or real(job))
    return calls


def test_corrected_tables_take_effect_without_reading_pixels(tmp_path: Path, pixels_read: list[str]) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    for k in (1, 2, 3):
        write_series(source / f"s{k}", uid=f"1.2.3.{k}", patient_id="", shape=(15 + k, 20, 20))
    first = run(source, store)
    pixels_read.clear()
    (source / "patients.csv").write_text("path,patient_id\ns1,P\ns2,P\ns3,Q\n")
    second = run(source, store)
    (source / "labels.csv").write_text("series_uid,nodule\n1.2.3.1,yes\n1.2.3.2,no\n9.9,yes\n")
    third = run(source, store)
    assert pixels_read == []
    assert len({first.snapshot, second.snapshot, third.snapshot}) == 3
    volumes = {v.attributes["SeriesInstanceUID"]: v for v in listed(store).values()}
    assert volumes["1.2.3.1"].patient_key == volumes["1.2.3.2"].patient_key != volumes["1.2.3.3"].patient_key
    assert [volumes[f"1.2.3.{k}"].labels for k in (1, 2, 3)] == [{"nodule": "yes"}, {"nodule": "no"}, {}]
    assert all(volume.patient_known for volume in volumes.values())
    assert [note for note in third.notes if "labels.csv: 1 row without a scan, the first in line 4" in note]
    steps = history(store)
    assert [steps.read(n).change for n in steps.numbers()] == [
        "ingest: 3 new",
        "ingest: 3 with another patient",
        "ingest: 2 with other labels",
    ]
    (source / "patients.csv").unlink()
    (source / "labels.csv").unlink()
    assert run(source, store).snapshot == first.snapshot  # back to what it was, by content
    old = load_snapshot(newest(VolumeStore.open(store)).model_copy(update={"digest": second.snapshot}))
    assert len(old.patients) == 2
    assert len(list((store / "commits").iterdir())) == 3


def test_a_table_that_contradicts_the_files_is_said_and_not_believed(tmp_path: Path) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "s1", uid="1.2.3.1", patient_id="Meyer")
    plain = run(source, store).snapshot
    (source / "patients.csv").write_text("series_uid,patient_id\n1.2.3.1,Schulze\n")
    report = run(source, store)
    assert report.snapshot == plain
    (note,) = [note for note in report.notes if "patients.csv" in note]
    assert "1 scan with another PatientID than the table gives" in note
    assert "line 2" in note
    assert "Schulze" not in note


def test_a_patient_id_that_is_corrected_in_the_files_is_listed(tmp_path: Path) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    for k in (1, 2):
        write_series(source / f"s{k}", uid=f"1.2.3.{k}", patient_id="Meier", shape=(15 + k, 20, 20))
    first = run(source, store)
    assert len({volume.patient_key for volume in listed(store).values()}) == 1
    write_series(source / "s2", uid="1.2.3.2", patient_id="Meyer", shape=(17, 20, 20))
    second = run(source, store)
    assert [entry.volume_id for entry in second.unchanged] == [entry.volume_id for entry in first.committed]
    assert len({volume.patient_key for volume in listed(store).values()}) == 2
    (note,) = [note for note in second.notes if "PatientID" in note]
    assert "1 scan with another PatientID than at an earlier ingest of this source, the first is 1.2.3.2" in note
    assert "Meyer" not in note


def test_a_short_copy_never_replaces_the_long_one(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_series(tmp_path / "A", shape=(24, 20, 20))
    write_series(tmp_path / "B", shape=(16, 20, 20))
    first = run(tmp_path / "A", store)
    for _ in range(2):
        short = run(tmp_path / "B", store)
        (entry,) = short.skipped
        assert entry.reason == "shorter_copy"
        assert "has 16 slices" in (entry.message or "")
        assert short.snapshot == first.snapshot
        assert run(tmp_path / "A", store).snapshot == first.snapshot
    assert slices(store) == [24]
    assert VolumeStore.open(store).volume_ids() == list(listed(store))  # the short one took no space


def test_the_long_copy_replaces_the_short_one_for_good(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_series(tmp_path / "A", shape=(24, 20, 20))
    write_series(tmp_path / "B", shape=(16, 20, 20))
    short = run(tmp_path / "B", store)
    long = run(tmp_path / "A", store)
    assert slices(store) == [24]
    again = run(tmp_path / "B", store)
    assert [entry.reason for entry in again.skipped] == ["shorter_copy"]
    assert again.snapshot == long.snapshot != short.snapshot
    shutil.rmtree(tmp_path / "A")
    write_series(tmp_path / "A", shape=(20, 20, 20))  # slices lost in its own folder
    assert [entry.reason for entry in run(tmp_path / "A", store).skipped] == ["shorter_copy"]
    assert slices(store) == [24]


def places(*, first: int, num: int) -> dict[str, Any]:
    """Some slices of the 24 of one scan."""
    return {"shape": (24, 20, 20), "skip": tuple(k for k in range(24) if not first <= k < first + num)}


@pytest.mark.parametrize(("num_a", "num_b"), [(24, 18), (18, 24), (20, 20)])
def test_the_scan_of_another_patient_under_the_same_id_takes_nothing_away(
    tmp_path: Path, num_a: int, num_b: int
) -> None:
    """De-identifiers give two scans one SeriesInstanceUID."""
    store = tmp_path / "store"
    write_series(tmp_path / "A", patient_id="P1", **places(first=0, num=num_a))
    write_series(tmp_path / "B", lambda world: half_air(world, 90.0), patient_id="P2", **places(first=0, num=num_b))
    (first,) = run(tmp_path / "A", store).committed
    for source in ("B", "A", "B"):
        report = run(tmp_path / source, store)
        assert list(listed(store)) == [first.volume_id]
        if source == "B":
            (entry,) = report.quarantined
            assert entry.reason == "other_scan"
            assert f"volume {first.volume_id}, of another patient" in (entry.message or "")


@pytest.mark.parametrize(("num_a", "num_b"), [(16, 8), (8, 16), (12, 12)])
def test_parts_of_one_scan_in_two_sources_are_no_copies(tmp_path: Path, num_a: int, num_b: int) -> None:
    store = tmp_path / "store"
    write_series(tmp_path / "A", **places(first=0, num=num_a))
    write_series(tmp_path / "B", **places(first=num_a, num=num_b))
    (first,) = run(tmp_path / "A", store).committed
    for _ in range(2):
        (entry,) = run(tmp_path / "B", store).quarantined
        assert entry.reason == "other_scan"
        assert f"volume {first.volume_id}, which has other slices" in (entry.message or "")
        assert run(tmp_path / "A", store).unchanged[0].volume_id == first.volume_id
    shutil.copytree(tmp_path / "B", tmp_path / "A", dirs_exist_ok=True)
    run(tmp_path / "A", store)
    assert slices(store) == [24]


def test_a_scan_that_is_broken_now_names_the_volume_that_stays(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_series(tmp_path / "A")
    (first,) = run(tmp_path / "A", store).committed
    write_series(tmp_path / "A", change=lambda k, data: setattr(data, "PatientID", "PQ"[k % 2]))
    report = run(tmp_path / "A", store)
    assert [entry.reason for entry in report.quarantined] == ["several_patients"]
    assert list(listed(store)) == [first.volume_id]
    (note,) = [note for note in report.notes if "stays listed" in note]
    assert f"prdit remove <store> {first.volume_id}." in note


def test_a_row_for_another_source_s_volume_counts_where_it_agrees_with_the_files(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_series(tmp_path / "A", patient_id="P1")
    write_series(tmp_path / "B", patient_id="P2")
    run(tmp_path / "A", store)
    (note,) = [note for note in run(tmp_path / "B", store).notes if "patients.csv of this source" in note]
    (before,) = listed(store).values()
    (tmp_path / "B" / "patients.csv").write_text("path,patient_id\n.,P2\n")
    assert note not in run(tmp_path / "B", store).notes
    (after,) = listed(store).values()
    assert after.patient_key != before.patient_key
    (tmp_path / "A" / "read.me").touch()
    assert note in run(tmp_path / "A", store).notes
    assert list(listed(store).values()) == [after]


def half_air(world: np.ndarray, hu: float) -> np.ndarray:
    return np.where(world[..., 0] < 0, -1000.0, hu)


def test_equal_copies_do_not_alternate_but_a_new_export_counts(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_series(tmp_path / "A", lambda world: half_air(world, 40.0))
    write_series(tmp_path / "B", lambda world: half_air(world, 90.0))
    first = run(tmp_path / "A", store)
    for _ in range(2):
        other = run(tmp_path / "B", store)
        assert [entry.reason for entry in other.skipped] == ["other_copy"]
        assert other.snapshot == run(tmp_path / "A", store).snapshot == first.snapshot
    write_series(tmp_path / "A", lambda world: half_air(world, 60.0))
    corrected = run(tmp_path / "A", store)
    assert corrected.snapshot != first.snapshot
    (volume_id,) = listed(store)
    assert int(VolumeStore.open(store).read_level(volume_id).hu[20, 10, -1]) == 60


def test_a_withdrawn_volume_stays_away_until_it_is_allowed_again(tmp_path: Path, pixels_read: list[str]) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "one", uid="1.2.3.1", patient_id="A")
    write_series(source / "two", uid="1.2.3.2", patient_id="B", shape=(20, 22, 20))
    first = run(source, store)
    pixels_read.clear()
    gone = first.committed[1].volume_id or ""
    without = withdraw(VolumeStore.open(store), [gone]).digest
    report = run(source, store)
    assert report.snapshot == without
    assert [(e.series_uid, e.reason) for e in report.skipped] == [("1.2.3.2", "withdrawn")]
    assert "--undo" in (report.skipped[0].message or "")
    allow_again(VolumeStore.open(store), [gone])
    assert run(source, store).snapshot == first.snapshot
    assert pixels_read == []


def test_what_a_run_worked_on_never_changes_under_it(tmp_path: Path) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "one", uid="1.2.3.1", patient_id="A")
    report = run(source, store)
    ref = newest(VolumeStore.open(store))
    before = (
        load_snapshot(ref).to_json(),
        VolumeStore.open(store).read_level(report.committed[0].volume_id).hu.tobytes(),
    )
    write_series(source / "two", uid="1.2.3.2", patient_id="B", shape=(20, 22, 20))
    run(source, store)
    (source / "labels.csv").write_text("path,nodule\none,yes\n")
    run(source, store)
    withdraw(VolumeStore.open(store), [report.committed[0].volume_id])
    run(source, store)
    opened, snapshot = open_snapshot(ref)
    assert (snapshot.to_json(), opened.read_level(report.committed[0].volume_id).hu.tobytes()) == before
    assert history(store).numbers() == [1, 2, 3, 4]


def test_a_killed_ingest_leaves_a_volume_that_the_next_one_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels_read: list[str]
) -> None:
    write_series(tmp_path / "src")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.ingest.run.list_scans", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "src", tmp_path / "store")
    with pytest.raises(MissingArtifactError, match="no ingest has finished"):
        newest(VolumeStore.open(tmp_path / "store"))
    monkeypatch.undo()
    report = run(tmp_path / "src", tmp_path / "store")
    assert len(report.unchanged) == len(listed(tmp_path / "store")) == 1


def test_a_store_of_format_1_is_refused_with_advice(tmp_path: Path) -> None:
    write_series(tmp_path / "src")
    run(tmp_path / "src", tmp_path / "store")
    root = tmp_path / "store" / "zarr.json"
    values = json.loads(root.read_text())
    values["attributes"]["prdit"]["format_version"] = 1
    root.write_text(json.dumps(values))
    with pytest.raises(VersionError, match="Ingest the scans into a new store"):
        run(tmp_path / "src", tmp_path / "store")


# ---- damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestReport]:
    root = tmp_path_factory.mktemp("whole")
    write_series(root / "src" / "one", uid="1.2.3.1", patient_id="A")
    write_series(root / "src" / "two", uid="1.2.3.2", patient_id="B", shape=(20, 22, 20))
    return root, run(root / "src", root / "store")


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_noticed_and_repaired(whole: tuple[Path, IngestReport], tmp_path: Path, what: str) -> None:
    root, report = whole
    store = tmp_path / "store"
    shutil.copytree(root / "store", store)
    shutil.copyfile(root / "store.patient-key", tmp_path / "store.patient-key")
    assert verify_store(store, num_workers=1) == ([], [])
    damage, kind = DAMAGE[what]
    damage(store)
    found, _ = verify_store(store, num_workers=1)
    assert kind in {finding.kind for finding in found}
    assert all("\n" not in finding.message for finding in found)
    repaired = run(root / "src", store, repair=True)
    assert verify_store(store, num_workers=1) == ([], [])
    assert repaired.snapshot == report.snapshot
    assert sorted(listed(store)) == sorted(entry.volume_id or "" for entry in report.committed)


def test_without_repair_damage_ends_in_advice_and_not_in_other_values(
    whole: tuple[Path, IngestReport], tmp_path: Path
) -> None:
    root, _ = whole
    for what in DAMAGE:
        store = tmp_path / what.replace(" ", "-") / "store"
        shutil.copytree(root / "store", store)
        shutil.copyfile(root / "store.patient-key", store.with_name("store.patient-key"))
        DAMAGE[what][0](store)
        if what in ("byte flipped", "record truncated") or what.startswith(("shard", "metadata", "folder", "record")):
            report = run(root / "src", store)  # the volumes are not read again, the lists are whole
            sentences = [*report.notes, *(entry.message or "" for entry in report.quarantined)]
            assert [text for text in sentences if "--repair" in text] or what != "record truncated"
        else:
            with pytest.raises(StorageError, match="--repair"):
                run(root / "src", store)


def test_damage_that_the_source_no_longer_has_stays_named(whole: tuple[Path, IngestReport], tmp_path: Path) -> None:
    root, report = whole
    store, source = tmp_path / "store", tmp_path / "src"
    shutil.copytree(root / "store", store)
    shutil.copyfile(root / "store.patient-key", tmp_path / "store.patient-key")
    shutil.copytree(root / "src" / "one", source / "one")
    gone = next(entry.volume_id for entry in report.committed if entry.series_uid == "1.2.3.2")
    flip(VolumeStore.open(store).folder(gone or "") / "0" / "c" / "0" / "0" / "0")
    repaired = run(source, store, repair=True)
    assert [note for note in repaired.notes if f"1 damaged volume not repaired: {gone}" in note]
    assert [finding.name for finding in verify_store(store, num_workers=1)[0]] == [gone]


def test_a_copy_with_another_header_repairs_without_changing_what_is_listed(tmp_path: Path) -> None:
    """The same pixels with another tag: files, or record and all, come from it; attributes stay those that snapshots list."""
    store = tmp_path / "store"
    write_series(tmp_path / "src")
    report = run(tmp_path / "src", store)
    write_series(tmp_path / "copy", change=lambda k, data: setattr(data, "KVP", "99"))
    for damage in ("byte flipped", "record truncated"):
        DAMAGE[damage][0](store)
        repaired = run(tmp_path / "copy", store, repair=True)
        assert repaired.snapshot == report.snapshot
        assert verify_store(store, num_workers=1) == ([], [])


def test_a_short_copy_that_only_earlier_snapshots_list_is_repaired(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_series(tmp_path / "B", shape=(16, 20, 20))
    write_series(tmp_path / "A", shape=(24, 20, 20))
    short = run(tmp_path / "B", store).committed[0].volume_id or ""
    listed_now = run(tmp_path / "A", store).snapshot
    for damaged in (VolumeStore.open(store).folder(short) / "0" / "zarr.json", store / "commits" / f"{short}.json"):
        damaged.unlink()
        report = run(tmp_path / "B", store, repair=True)
        assert [entry.reason for entry in report.skipped] == ["shorter_copy"]
        assert report.snapshot == listed_now
        assert verify_store(store, num_workers=1) == ([], [])


@pytest.fixture
def copied(whole: tuple[Path, IngestReport], tmp_path: Path) -> tuple[Path, Path]:
    """(source, a copy of its store that may be damaged)."""
    store = tmp_path / "store"
    shutil.copytree(whole[0] / "store", store)
    shutil.copyfile(whole[0] / "store.patient-key", tmp_path / "store.patient-key")
    return whole[0] / "src", store


def test_repair_never_lists_a_withdrawn_volume_again(copied: tuple[Path, Path]) -> None:
    source, store = copied
    gone, kept = sorted(listed(store))
    ref = withdraw(VolumeStore.open(store), [gone])
    (store / "snapshots" / f"{ref.digest.removeprefix('sha256:')}.json").write_bytes(b"{")
    assert run(source, store, repair=True).snapshot == ref.digest
    assert list(listed(store)) == [kept]
    assert verify_store(store, num_workers=1) == ([], [])
    allow_again(VolumeStore.open(store), [gone])
    newest_step = store / "snapshots" / f"{ref.digest.removeprefix('sha256:')}.json"
    newest_step.write_bytes(b"{")
    run(source, store, repair=True)
    assert sorted(listed(store)) == [gone, kept]  # what was allowed again is not withdrawn by the repair


def test_repair_writes_no_root_that_contradicts_the_snapshots(copied: tuple[Path, Path]) -> None:
    source, store = copied
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").unlink()
    with pytest.raises(StoreFormatError, match="settings that the store was made with"):
        ingest(source, store, CONFIG.model_copy(update={"interpolation": "linear"}), repair=True, runner=Local(1))
    assert not (store / "zarr.json").exists()
    (store / "zarr.json").write_text(text.replace('"cubic"', '"linear"'))
    assert {finding.kind for finding in verify_store(store, num_workers=1)[0]} == {"snapshot"}
    run(source, store, repair=True)
    assert (store / "zarr.json").read_text() == text
    assert verify_store(store, num_workers=1) == ([], [])


def test_repair_leaves_lists_of_a_newer_prdit_alone(copied: tuple[Path, Path]) -> None:
    source, store = copied
    for path in (*store.glob("history/*.json"), *store.glob("snapshots/*.json")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    before = sorted(path.name for path in store.rglob("*.json"))
    with pytest.raises(VersionError, match="Update prdit"):
        run(source, store, repair=True)
    assert sorted(path.name for path in store.rglob("*.json")) == before


def test_a_store_may_be_the_current_folder(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = copied
    monkeypatch.chdir(store)
    before = sorted(store.iterdir())
    assert len(run(source, Path()).unchanged) == 2
    assert sorted(store.iterdir()) == before  # no second key, and nothing else, in the store


def test_left_out_images_are_named_after_the_source_was_moved(tmp_path: Path, pixels_read: list[str]) -> None:
    def turn_the_last(k: int, data: Dataset) -> None:
        if k == 23:
            data.ImageOrientationPatient, data.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [7.0, -99.0, 1.0]

    write_series(tmp_path / "a" / "s", change=turn_the_last)
    first = run(tmp_path / "a", tmp_path / "store")
    assert [(e.path, e.reason, e.image_of_volume) for e in first.skipped] == [
        ("s/023.dcm", "inconsistent_orientation", True)
    ]
    assert [note for note in first.notes if "1 image of the series left out (inconsistent_orientation)" in note]
    pixels_read.clear()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = run(tmp_path / "b", tmp_path / "store")
    again = run(tmp_path / "b", tmp_path / "store")
    assert pixels_read == []
    assert moved.skipped == again.skipped == first.skipped
    assert moved.counts == {"committed": 0, "unchanged": 1, "skipped": 1, "quarantined": 0}
    (tmp_path / "b" / "s" / "023.dcm").rename(tmp_path / "b" / "s" / "z.dcm")
    (tmp_path / "b").rename(tmp_path / "c")
    renamed = run(tmp_path / "c", tmp_path / "store")  # no earlier verdict names a file of it
    assert renamed.skipped == []


def test_the_tables_of_the_source_that_is_ingested_last_count(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("A", "B"):
        write_series(tmp_path / name)
        (tmp_path / name / "labels.csv").write_text(f"series_uid,stage\n1.2.3.4.5,{name}\n")
    for name in ("A", "B", "A", "A"):
        run(tmp_path / name, store)
        assert [volume.labels for volume in listed(store).values()] == [{"stage": name}]
