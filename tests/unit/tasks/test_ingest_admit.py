"""Volumes that are not admitted are committed and not listed, nothing says they are, and the next ingest lists them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from storage.artifacts import Ref
from storage.documents.snapshot import SnapshotVolume
from storage.documents.verdicts import IngestReport
from storage.errors import InputError, MissingArtifactError
from storage.snapshots import history, load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.qc import page_path
from tasks.ingest.run import Admit, ingest
from tasks.ingest.stage import ingest_stage
from tasks.run.runners import Local
from tasks.run.stage import RunContext
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import write_series

CONFIG = small_ingest(num_levels=2)


class Gate:
    """Remembers what it was asked, and refuses where it is to."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses = refuses
        self.asked: list[tuple[list[str], Ref | None]] = []

    def __call__(self, store: VolumeStore, new: Mapping[str, SnapshotVolume], snapshot: Ref | None) -> None:
        for volume_id in new:
            store.commit_record(volume_id)  # committed by then
        self.asked.append((list(new), snapshot))
        if self.refuses:
            raise InputError("HU are shifted by 200 (allowed 50).")


def run(source: Path, store: Path, admit: Admit | None = None) -> IngestReport:
    return ingest(source, store, CONFIG, runner=Local(1), admit=admit)


@pytest.fixture
def pixels_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scans whose pixels were read."""
    from tasks.ingest import scans

    calls: list[str] = []
    real = scans.ingest_series
    monkeypatch.setattr(scans, "ingest_series", lambda job: calls.append(job.scan.scan_id) or real(job))
    return calls


def test_the_gate_is_asked_about_new_volumes_only(tmp_path: Path) -> None:
    source, store, gate = tmp_path / "src", tmp_path / "store", Gate(refuses=False)
    write_series(source / "1", uid="1.2.3.1")
    first = run(source, store, gate)
    write_series(source / "2", uid="1.2.3.2", shape=(17, 20, 20))
    second = run(source, store, gate)
    run(source, store, gate)
    ids = [[entry.volume_id for entry in report.committed] for report in (first, second)]
    assert gate.asked == [
        (ids[0], None),
        (ids[1], newest(VolumeStore.open(store)).model_copy(update={"digest": first.snapshot})),
    ]


def test_a_held_first_batch_leaves_a_store_without_a_list(tmp_path: Path, pixels_read: list[str]) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "1", uid="1.2.3.1")
    with pytest.raises(InputError, match="shifted by 200"):
        run(source, store, Gate(refuses=True))
    opened = VolumeStore.open(store)
    assert len(opened.volume_ids()) == 1
    assert history(store).numbers() == []
    with pytest.raises(MissingArtifactError):
        newest(opened)
    pixels_read.clear()
    released = run(source, store)
    assert pixels_read == []
    assert [entry.series_uid for entry in released.unchanged] == ["1.2.3.1"]
    assert list(load_snapshot(newest(opened)).volumes) == opened.volume_ids()


def test_nothing_says_that_held_volumes_are_listed_and_they_come_when_released(
    tmp_path: Path, pixels_read: list[str]
) -> None:
    source, batch, store = tmp_path / "src", tmp_path / "batch", tmp_path / "store"
    write_series(source / "1", uid="1.2.3.1")
    first = run(source, store)
    write_series(batch / "2", uid="1.2.3.2", shape=(17, 20, 20))
    write_series(
        batch / "3", uid="1.2.3.3", shape=(3, 20, 20)
    )  # broken: the page has its reason though the batch is held
    with pytest.raises(InputError):
        run(batch, store, Gate(refuses=True))
    opened = VolumeStore.open(store)
    assert newest(opened).digest == first.snapshot
    assert {(one["series_uid"], one["reason"]) for one in opened.exclusions()} == {
        ("1.2.3.2", "held"),
        ("1.2.3.3", "too_few_slices"),
    }
    page = page_path(store).read_text()
    assert "committed but not listed, because its batch was held: HU are shifted by 200 (allowed 50)." in page
    assert page.count("<img") == 1 + page.count("data:image/png")  # one listed volume, and previews of what is left out
    pixels_read.clear()
    released = run(batch, store)
    assert pixels_read == ["1.2.3.3"]  # the broken one is looked at again
    assert [entry.series_uid for entry in released.used] == ["1.2.3.2"]
    assert len(load_snapshot(newest(opened)).volumes) == 2
    assert {one["reason"] for one in opened.exclusions()} == {"too_few_slices"}


def test_a_longer_copy_that_is_held_does_not_replace_the_listed_one(tmp_path: Path) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "1", uid="1.2.3.1", shape=(16, 20, 20))
    first = run(source, store)
    write_series(source / "1", uid="1.2.3.1", shape=(20, 20, 20))
    with pytest.raises(InputError):
        run(source, store, Gate(refuses=True))
    opened = VolumeStore.open(store)
    assert newest(opened).digest == first.snapshot
    assert [(one["series_uid"], one["reason"]) for one in opened.exclusions()] == [("1.2.3.1", "held")]
    released = run(source, store)
    assert [opened.commit_record(name).scan.num_slices for name in load_snapshot(newest(opened)).volumes] == [20]  # type: ignore[union-attr]
    assert not [note for note in released.notes if "broken" in note]


def test_a_held_ingest_is_not_cached(tmp_path: Path) -> None:
    source, store = tmp_path / "src", tmp_path / "store"
    write_series(source / "1", uid="1.2.3.1")
    context = RunContext(workdir=tmp_path / "work", tracking_uri=None, experiment="e", tags={}, parameters={})

    def stage(admit: Admit | None) -> bool:
        return ingest_stage(source, store, CONFIG, context, lambda *_: None, runner=Local(1), admit=admit).cached

    gate = Gate(refuses=True)
    for _ in range(2):
        with pytest.raises(InputError, match="shifted"):
            stage(gate)
    assert len(gate.asked) == 2
    assert stage(None) is False
    assert stage(gate) is True  # everything is listed: there is nothing to ask
    assert len(gate.asked) == 2
