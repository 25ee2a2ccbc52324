"""Runner `slurm` on a real Slurm of two nodes: scans, samples and features by its jobs are those of this machine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import artifact_files
from tasks.ingest.run import ingest
from tasks.run import clusters
from tasks.run.clusters import RunnerError
from tasks.run.fanout import Pool
from tasks.run.runners import Local, Slurm
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tests.factories import small_ingest
from tests.logs import said
from tests.processes import wait_for
from tests.slurm import Slurm as Site
from tests.slurm import skip_without_slurm, slurm_cluster
from tests.unit.storage.dicom_files import write_series
from tests.unit.tasks import work_items
from tests.unit.tasks.checkpoints import commit_checkpoint


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    skip_without_slurm()
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def await_no_jobs(site: Site) -> None:
    """None is left after its end was asked for: a job's own limit is ten minutes."""
    wait_for(lambda: not site.jobs())


def runner(folder: Path, **settings: Any) -> Slurm:
    return Slurm(
        **{"num_workers": 2, "memory_gb": 1, "partition": "p", "time_limit": "10", "interface": "lo"} | settings,
        options=("--mem=0", f"--chdir={folder}"),
        log_directory=str(folder / "logs"),
    )


def test_jobs_make_what_this_machine_makes(site: Site, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / f"{name}.patient-key").write_text("00" * 32)
    for k in range(3):
        write_series(tmp_path / "src" / f"s{k}", uid=f"1.2.3.{k}", shape=(16 + k, 26, 28))
    ours = ingest(tmp_path / "src", tmp_path / "here", small_ingest(), runner=Local(1))
    theirs = ingest(tmp_path / "src", tmp_path / "there", small_ingest(), runner=runner(tmp_path))
    assert len(theirs.committed) == 3
    assert theirs.snapshot == ours.snapshot
    await_no_jobs(site)

    checkpoint = commit_checkpoint(tmp_path / "global", "global", {})
    settings = SampleConfig(num_volumes=4, num_steps=5, batch_size=2, num_threads=1, device="cpu")
    sample(checkpoint, settings, tmp_path / "one", lambda *_: None)
    sample(checkpoint, settings, tmp_path / "all", lambda *_: None, runner=runner(tmp_path, num_workers=1))
    assert artifact_files(tmp_path / "all") == artifact_files(tmp_path / "one")
    await_no_jobs(site)
    assert len(list((tmp_path / "logs").glob("*.out"))) == 3


def test_a_job_that_is_cancelled_is_submitted_again_and_one_that_waits_is_said(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clusters, "_LOOK_S", 0.3)
    monkeypatch.setitem(clusters._SETTINGS, "distributed.deploy.lost-worker-timeout", "1s")  # 15 s
    caplog.set_level("WARNING", "prdit.fanout")
    with Pool(runner(tmp_path, num_workers=1), one_thread=False) as pool:
        first: list[str] = []
        for item, _ in pool.each(work_items.sleeps, [0.0, 0.1, 0.2], str):
            if not first:
                first = site.jobs()
                site.command("scancel", *first)
                time.sleep(1)
            assert item in (0.0, 0.1, 0.2)
        assert set(site.jobs()).isdisjoint(first)
    await_no_jobs(site)
    assert said(caplog)[0] == (
        f"no worker is connected to Slurm's jobs, waiting; see `squeue --me`, and what they printed in {tmp_path / 'logs'}"
    )


@pytest.mark.usefixtures("site")
def test_what_slurm_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    runner(tmp_path).check()
    with pytest.raises(RunnerError, match=r"runner slurm: .*invalid partition specified: nowhere"):
        runner(tmp_path, partition="nowhere").check()
    with pytest.raises(RunnerError, match=r"runner slurm: .*Correct runner\.partition"):
        runner(tmp_path, cores=100).check()
