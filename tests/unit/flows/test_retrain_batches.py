"""What becomes of a batch that cannot be ingested: held where its scans are the reason, open where something else is."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import flows.retrain_batches
from flows.retrain_batches import Taken, _Held, _settle, _show
from flows.retrain_setup import Setup
from storage.errors import NothingUsableError, SourceError
from storage.inbox_ledger import Batch, Ledger
from tasks.drift.gate import DriftVerdict
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import write_series
from tests.unit.tasks.arrivals import Arrivals, arrivals

__all__ = ["arrivals"]  # a fixture


@pytest.fixture
def settle(arrivals: Arrivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Taken]:
    """Take a batch and ingest it, without Prefect's records of tasks."""
    monkeypatch.chdir(tmp_path)

    class Done:
        def __init__(self, state: Any) -> None:
            self.result = lambda: state.data

    def task(**_: Any) -> Any:
        return lambda work: lambda **_: Done(work())

    def stage(folder: Path, store: Path, config: Any, *_: Any, **others: Any) -> Any:
        report = ingest(folder, store, small_ingest(), runner=others["runner"])
        if not report.committed:
            raise NothingUsableError("no usable CT")
        raise AssertionError("it can be ingested")

    monkeypatch.setattr(flows.retrain_batches, "task", task)
    monkeypatch.setattr(flows.retrain_batches, "ingest_stage", stage)
    monkeypatch.setattr(flows.retrain_batches, "task_progress", lambda name: nullcontext())
    monkeypatch.setattr(flows.retrain_batches, "_show", lambda *_: None)

    def run() -> Taken:
        arrivals.settle()
        batch, taken = arrivals.take(), Taken()
        assert batch is not None
        setup = Setup.of("tiny", inbox=str(arrivals.inbox), arrivals=str(arrivals.ledger.folder), store="store")
        _settle(arrivals.ledger, batch, setup, taken)
        return taken

    return run


def test_a_malformed_table_leaves_it_open(arrivals: Arrivals, settle: Callable[[], Taken]) -> None:
    arrivals.series("a", "1.2.3")
    (arrivals.inbox / "patients.csv").write_text("path,patient_id\na,P1,too many\n")
    with pytest.raises(SourceError, match=r"3 values, but there are 2 columns(.|\n)*Batch 1 stays open") as caught:
        settle()
    assert str(arrivals.root) not in str(caught.value)
    assert [one.state for one in Ledger(arrivals.ledger.folder).batches()] == ["open"]


def test_a_batch_without_a_usable_scan_is_held(arrivals: Arrivals, settle: Callable[[], Taken]) -> None:
    arrivals.series("short", "1.2.4", num_slices=3)
    taken = settle()
    assert (taken.listed, taken.held) == ([], [1])
    assert "nothing in it can be used: no usable CT" in taken.sentences[0]
    assert [one.state for one in arrivals.ledger.batches()] == ["held"]


def test_a_batch_without_ct_is_held(
    arrivals: Arrivals, settle: Callable[[], Taken], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stage(*_: Any, **__: Any) -> None:
        write_series(tmp_path / "mr", shape=(5, 6, 6), change=lambda _, data: setattr(data, "Modality", "MR"))
        ingest(tmp_path / "mr", tmp_path / "store", small_ingest(), runner=Local(1))

    monkeypatch.setattr(flows.retrain_batches, "ingest_stage", stage)
    arrivals.series("a", "1.2.4")
    assert settle().held == [1]


def test_the_page_has_the_reasons_but_no_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's database is not looked at when a patient is forgotten; the folder of the pictures is."""
    pages: list[str] = []
    monkeypatch.setattr(flows.retrain_batches, "create_markdown_artifact", lambda key, markdown: pages.append(markdown))
    batch = Batch(3, "open", tmp_path / "batches" / "000003", 2, "2026-11-29T00:00:00+00:00")
    verdict = DriftVerdict((), ("compared with 9 volumes",), b"\x89PNG picture")
    _show(Ledger(tmp_path), batch, _Held("HU are shifted by 200", (), verdict))
    (page,) = pages
    assert "base64" not in page
    assert "HU are shifted by 200" in page
    assert "- compared with 9 volumes" in page
    picture = tmp_path / "pictures" / "000003.png"
    assert str(picture) in page
    assert picture.read_bytes() == b"\x89PNG picture"
