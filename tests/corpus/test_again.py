"""What a second ingest must make of a source that changed, or of another copy of a scan: kinds 14 and 22 of the table."""

import json
import logging
from pathlib import Path

import pytest

from storage.documents.snapshot import SnapshotVolume
from storage.documents.verdicts import IngestReport
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.corpus.classic import Scan, put, save, scan
from tests.corpus.member import Place
from tests.corpus.run import SETTINGS, left_out
from tests.corpus.world import WORLDS, compare

CONFIG = IngestConfig(**SETTINGS)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def _place(folder: Path, name: str = "scan") -> Place:
    """Members of one name have the same UIDs, wherever they are written."""
    return Place(folder, WORLDS[0], name)


def _scan(place: Place, num_slices: int = 40) -> Scan:
    return scan(place, geometry=WORLDS[0].geometry.turned(shape=(num_slices, 26, 28)))


def _run(source: Path, store: Path) -> tuple[IngestReport, dict[str, SnapshotVolume]]:
    report = ingest(source, store, CONFIG, runner=Local(1))
    return report, dict(load_snapshot(newest(VolumeStore.open(store))).volumes)


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """Source A with 40 slices of a scan, source B with the lower 24 of them."""
    made = _scan(_place(tmp_path / "A" / "scan"))
    save(_place(tmp_path / "A" / "scan"), made.slices)
    save(_place(tmp_path / "B" / "scan"), made.slices[:24])
    return tmp_path / "A", tmp_path / "B"


def test_a_short_copy_takes_nothing_away(copies: tuple[Path, Path], tmp_path: Path) -> None:
    long, short = copies
    store = tmp_path / "store"
    _, first = _run(long, store)
    report, listed = _run(short, store)
    assert listed == first
    assert report.committed == []
    assert left_out(report)[0] == {"shorter_copy": 1}
    (volume_id,) = listed
    assert VolumeStore.open(store).commit_record(volume_id).scan.num_slices == 40  # type: ignore[union-attr]
    again, listed = _run(long, store)
    assert listed == first
    assert [entry.volume_id for entry in again.unchanged] == [volume_id]
    assert left_out(again)[0] == {}
    _, listed = _run(short, store)
    assert listed == first


def test_a_long_copy_replaces_a_short_one_and_stays(copies: tuple[Path, Path], tmp_path: Path) -> None:
    long, short = copies
    store = tmp_path / "store"
    _, first = _run(short, store)
    report, listed = _run(long, store)
    assert len(report.committed) == len(listed) == 1
    assert listed.keys() != first.keys()
    volume = VolumeStore.open(store).read_level(next(iter(listed)))
    whole = _scan(_place(tmp_path / "elsewhere")).right()
    assert compare(volume, whole).problems == []
    for source in (short, long, short):
        _, now = _run(source, store)
        assert now == listed


def test_a_short_copy_with_a_gap_in_a_store_that_has_it_whole(copies: tuple[Path, Path], tmp_path: Path) -> None:
    """A copy that is refused takes nothing away either."""
    long, short = copies
    store = tmp_path / "store"
    _, first = _run(long, store)
    sorted((short / "scan").iterdir())[10].unlink()
    report, listed = _run(short, store)
    assert left_out(report)[0] == {"missing_slices": 1}
    assert listed == first


def test_the_short_copy_in_one_source_with_the_long_one(copies: tuple[Path, Path], tmp_path: Path) -> None:
    """Both copies under one folder are one series whose slices repeat."""
    _, listed = _run(tmp_path, tmp_path.parent / f"{tmp_path.name}-store")
    (volume_id,) = listed
    record = VolumeStore.open(tmp_path.parent / f"{tmp_path.name}-store").commit_record(volume_id)
    assert record.scan is not None
    assert (record.scan.num_slices, record.scan.num_duplicates) == (40, 24)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the scans whose pixels are read from now on."""
    from tasks.ingest import series

    read: list[str] = []
    original = series.ingest_series

    def noted(job: series.SeriesJob) -> list[dict[str, object]]:
        read.append(job.scan.scan_id)
        return original(job)

    monkeypatch.setattr("tasks.ingest.scans.ingest_series", noted)
    return read


def test_tables_that_come_later_take_effect_without_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    for number, name in enumerate(("one", "two")):
        place = _place(source / name, name)
        made = scan(place, hu=lambda world, more=20 * number: WORLDS[0].hu(world) + more)  # type: ignore[misc]
        made.each(lambda _, d: put(d, PatientID=None))
        save(place, made.slices)
    first, listed = _run(source, store)
    assert len({volume.patient_key for volume in listed.values()}) == 2
    assert not any(volume.patient_known for volume in listed.values())
    read = _counted(monkeypatch)

    (source / "patients.csv").write_text("path,patient_id\none,P1\ntwo,P1\n")
    second, listed = _run(source, store)
    assert read == []
    assert second.snapshot != first.snapshot
    assert len({volume.patient_key for volume in listed.values()}) == 1
    assert all(volume.patient_known for volume in listed.values())

    (source / "labels.csv").write_text("path,grade,site\none,3,A\ntwo,0,B\n")
    third, listed = _run(source, store)
    assert read == []
    assert third.snapshot != second.snapshot
    assert sorted(json.dumps(volume.labels) for volume in listed.values()) == [
        '{"grade": "0", "site": "B"}',
        '{"grade": "3", "site": "A"}',
    ]

    (source / "labels.csv").write_text("path,grade,site,stage\none,2,A,II\ntwo,0,B,\n")
    _, listed = _run(source, store)
    assert read == []
    assert {volume.labels["grade"] for volume in listed.values()} == {"0", "2"}
    assert "II" in {volume.labels.get("stage") for volume in listed.values()}

    (source / "patients.csv").write_text("path,patient_id\none,P1\ntwo,P2\n")
    _, listed = _run(source, store)
    assert read == []
    assert len({volume.patient_key for volume in listed.values()}) == 2
