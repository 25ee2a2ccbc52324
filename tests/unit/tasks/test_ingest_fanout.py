"""Ingest over processes: the same store as in one, at a full disk one error."""

from pathlib import Path

from distributed import Client, LocalCluster

from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.run.runners import Address, Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import write_series


def same_key(folder: Path, *stores: str) -> None:
    """One secret for the patient keys of several stores, so that their snapshots can be compared."""
    for name in stores:
        (folder / f"{name}.patient-key").write_text("00" * 32)


def test_processes_give_the_store_one_process_gives(tmp_path: Path) -> None:
    same_key(tmp_path, "one", "many")
    for k in range(3):
        write_series(tmp_path / "src" / f"s{k}", uid=f"1.2.3.{k}", shape=(16 + k // 2, 26, 28))  # two of them are equal
    many = ingest(tmp_path / "src", tmp_path / "many", small_ingest(), runner=Local(2))
    one = ingest(tmp_path / "src", tmp_path / "one", small_ingest(), runner=Local(1))
    assert many.snapshot == one.snapshot
    assert len(many.committed) == 2
    assert [e.reason for e in many.skipped] == ["duplicate_volume"]
    for volume_id in VolumeStore.open(tmp_path / "many").volume_ids():
        VolumeStore.open(tmp_path / "many").verify(volume_id)


def test_a_running_scheduler_gives_the_same_store(tmp_path: Path) -> None:
    """The work goes to a Dask cluster that runs already."""
    same_key(tmp_path, "theirs", "ours")
    for k in range(2):
        write_series(tmp_path / "src" / f"s{k}", uid=f"1.2.3.{k}", shape=(16 + k, 26, 28))
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        runner = Address(cluster.scheduler_address)
        theirs = ingest(tmp_path / "src", tmp_path / "theirs", small_ingest(), runner=runner)
        with Client(cluster) as client:
            ran = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers))
    ours = ingest(tmp_path / "src", tmp_path / "ours", small_ingest(), runner=Local(1))
    assert ran == 1
    assert len(theirs.committed) == 2
    assert theirs.snapshot == ours.snapshot
