"""What a source may cost: bounded by the bytes that are there, whatever they claim, and whatever kills its reader."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tasks.ingest import scans
from tasks.ingest.costs import allowance, resampling_s
from tasks.ingest.run import ingest
from tasks.ingest.series import MAX_VOXELS, SeriesJob
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import write_series

MB = 1 << 20


@pytest.mark.parametrize("size", [0, 100_000, 3 * MB, 10 * MB])
def test_less_than_10_mb_cost_less_than_2_gib_and_30_s(size: int) -> None:
    """The largest oblique volume asks for 322 s; a process has about 300 MB of its own."""
    allowed = allowance(size)
    assert resampling_s(MAX_VOXELS) > 300
    assert allowed.seconds + min(resampling_s(MAX_VOXELS), allowed.more_s) <= 27
    assert allowed.memory_mb + 300 < 2048
    assert not allowed.together
    assert allowance(size, together=True).together


def test_a_thin_oblique_scan_has_the_time_it_takes() -> None:
    """0.18 s per million voxels: 35 MB of compressed slices of an oblique chest at 1 mm, with room for a slower machine."""
    takes = 0.18e-6 * 500 * 600 * 600
    allowed = allowance(35 * MB)
    assert allowed.more_s >= 2 * takes
    assert allowance(3 * MB).seconds + allowance(3 * MB).more_s >= 3 * 0.18e-6 * 264 * 389 * 359  # 30 thick slices


def crashing(job: SeriesJob) -> Any:
    """A decoder that writes where it must not."""
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_decoder_that_crashes_is_a_verdict_and_leaves_no_memory_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its neighbours are read: see `test_fanout`."""
    write_series(tmp_path / "src", shape=(9, 8, 8), uid="1.2.66")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scans, "ingest_series", crashing)
    report = ingest(tmp_path / "src", tmp_path / "store", small_ingest(spacing_mm=4.0, num_levels=1), runner=Local(2))
    assert [(one.series_uid, one.reason) for one in report.quarantined] == [("1.2.66", "worker_died")]
    assert "died twice (signal SIGSEGV)" in str(report.quarantined[0].message)
    assert not list(tmp_path.glob("core*"))
