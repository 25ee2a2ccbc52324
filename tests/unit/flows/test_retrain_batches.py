"""What the page of a run says of a batch that is held."""

from pathlib import Path

import pytest

from flows import retrain_batches
from flows.retrain_batches import _Held, _show
from storage.inbox_ledger import Batch, Ledger
from tasks.drift.gate import DriftVerdict


def test_the_page_has_the_reasons_but_no_voxels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's database is not looked at when a patient is forgotten; the folder of the pictures is."""
    pages: list[str] = []
    monkeypatch.setattr(retrain_batches, "create_markdown_artifact", lambda key, markdown: pages.append(markdown))
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
