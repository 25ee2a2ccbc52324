"""Runners: settings, refusals before anything is written, and samples and features that are the same bytes on workers."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from distributed import LocalCluster

from flows.config import load_config
from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import Ref, artifact_files
from storage.errors import ComputationError, ConfigError, OutOfMemoryError
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import Volumes, volume_features
from tasks.run import clusters
from tasks.run.clusters import RunnerError, SchedulerError
from tasks.run.fanout import Pool
from tasks.run.machine import cores
from tasks.run.runners import RUNNERS, Address, Cuda, Local, Slurm
from tasks.run.settings import named_settings
from tasks.run.stage import RunContext
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.sample.stage import sample_stage
from tests.factories import make_split, make_store
from tests.processes import descendants, wait_for
from tests.unit.tasks import work_items
from tests.unit.tasks.checkpoints import commit_checkpoint, commit_pair, tiny_model


def silent(done: int, total: int) -> None:
    pass


def config(**changes: object) -> SampleConfig:
    values = {"num_volumes": 4, "num_steps": 5, "batch_size": 2, "num_threads": 2, "device": "cpu"}
    return SampleConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ref]:
    root = tmp_path_factory.mktemp("data")
    store = make_store(root / "store", num_volumes=4)
    split = make_split(root / "split", store, ["v0", "v1"], ["v2", "v3"])
    return {"snapshot": store, "split": split, "checkpoint": commit_pair(root, store, split)[1]}


@pytest.fixture(scope="module")
def runner() -> Iterator[Address]:
    """Two workers of somebody else's cluster."""
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        yield Address(cluster.scheduler_address)


def children() -> list[psutil.Process]:
    """Processes beside Dask's workers."""
    return descendants(None, "tasks.run.child")


# ---- settings ------------------------------------------------------------------------------------------------------------


def test_a_runner_is_named_with_its_settings() -> None:
    assert load_config("demo").runner == Local(None)
    assert load_config("tiny", {"runner": {"num_workers": 2}}).runner == Local(2)
    assert load_config("tiny", {"runner": {"num_workers": 1}}).runner == Local(1)
    assert load_config("tiny", {"runner": "cuda"}).runner == Cuda(None)  # what belongs to `local` is dropped
    slurm = load_config("tiny", {"runner": {"name": "slurm", "partition": "p", "options": ["--gres=gpu:1"]}})
    assert slurm.runner == Slurm(partition="p", options=("--gres=gpu:1",))
    assert slurm.model_dump(mode="json")["runner"] | {"num_workers": 3} == {
        "name": "slurm",
        "num_workers": 3,
        "cores": 1,
        "memory_gb": 8,
        "time_limit": "01:00:00",
        "partition": "p",
        "account": None,
        "interface": None,
        "options": ["--gres=gpu:1"],
        "log_directory": ".prdit/slurm",
    }
    assert named_settings(RUNNERS, "local", slurm.model_dump(mode="json")["runner"]) == slurm.runner
    assert slurm.digest() == load_config("tiny").digest()


@pytest.mark.parametrize(
    ("runner", "said"),
    [
        ("cloud", "runner: Unknown runner 'cloud'; there are local, cuda, slurm, address."),
        (7, "runner: expected a name (local, cuda, slurm, address) or a mapping with a name, got 7"),
        ({"num_workers": 0}, "runner: num_workers is 0; expected at least 1"),
        ({"name": "slurm", "cores": "many"}, "runner.cores: Input should be a valid integer"),
        ({"name": "slurm", "queue": "p"}, "runner.queue: unknown key. Known here: account, cores, interface"),
        ({"name": "address"}, "runner.scheduler: Field required"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(runner: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", {"runner": runner})
    assert str(caught.value).startswith(f"configuration 'tiny':\n  {said}")
    assert len(str(caught.value).splitlines()) == 2


# ---- refusals ------------------------------------------------------------------------------------------------------------


def refused(runner: Any, checkpoint: Ref, workdir: Path) -> str:
    """What sampling says, which has written nothing."""
    with pytest.raises(RunnerError) as caught:
        sample_stage(checkpoint, config(), RunContext(workdir=workdir), silent, runner=runner)
    assert not workdir.exists()
    return str(caught.value)


def test_what_is_missing_is_said_before_anything_is_written(
    data: dict[str, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(module: str) -> None:
        monkeypatch.setitem(sys.modules, module, None)

    place, work = data["checkpoint"], tmp_path / "work"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert refused(Cuda(2), place, work).startswith("runner cuda needs 2 GPU(s), and torch sees 1 here")
    without("dask_cuda")
    said = refused(Cuda(), place, work)
    assert "needs the package dask-cuda" in said
    assert "`pip install --no-deps dask-cuda cuda-core cuda-bindings cuda-pathfinder nvidia-ml-py`" in said
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(Slurm(), place, work).startswith("runner slurm needs the program sbatch, which is not on the PATH.")
    without("dask_jobqueue")
    assert "needs the package dask-jobqueue, which cannot be imported" in refused(Slurm(), place, work)


def test_ctrl_c_stays_ours() -> None:
    """dask-jobqueue takes it for itself when it is imported."""
    code = (
        "import signal, threading\nfrom tasks.run.clusters import import_dask_jobqueue\n"
        "thread = threading.Thread(target=import_dask_jobqueue)\nthread.start()\nthread.join()\n"
        "print(import_dask_jobqueue().SLURMCluster.__name__, signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("SLURMCluster True\n", "")


def test_a_run_is_refused_before_its_trainings(tmp_path: Path) -> None:
    from flows.pipeline import run_through

    work = tmp_path / "work"
    values = {"runner": {"name": "cuda", "num_workers": 1000}, "store": str(tmp_path / "store"), "workdir": str(work)}
    with pytest.raises(RunnerError, match=r"^runner cuda needs 1000 GPU\(s\)"):
        run_through(load_config("tiny", values), "evaluate")
    assert not work.exists()


def test_slurm_is_asked_whether_it_takes_the_jobs(
    data: dict[str, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(
        '#!/bin/sh\necho "$@" > "$(dirname $0)/asked"; echo "invalid partition" >&2; exit 1\n'
    )
    (programs / "scancel").write_text("#!/bin/sh\n")
    for program in ("sbatch", "scancel"):
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    runner = Slurm(partition="none", cores=4, memory_gb=16, options=("--gres=gpu:1",))
    said = refused(runner, data["checkpoint"], tmp_path / "work")
    assert said.startswith("Slurm would not take the jobs of runner slurm: invalid partition. Correct")
    asked = (programs / "asked").read_text().split()
    assert asked[:2] == ["--test-only", "--ntasks=1"]
    assert {"--cpus-per-task=4", "--mem=16G", "--partition=none", "--time=01:00:00", "--gres=gpu:1"} < {*asked}


def test_a_scheduler_that_does_not_answer_is_said_first(
    data: dict[str, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_CONNECT_S", 0.5)
    with pytest.raises(SchedulerError, match=r"no Dask scheduler answers at 127\.0\.0\.1:1 \(runner\.scheduler"):
        sample_stage(
            data["checkpoint"], config(), RunContext(workdir=tmp_path / "w"), silent, runner=Address("127.0.0.1:1")
        )


# ---- the same bytes ------------------------------------------------------------------------------------------------------


def test_workers_make_what_this_process_makes(data: dict[str, Ref], tmp_path: Path, runner: Address) -> None:
    """Samples by two workers, one of which loses its process in the middle: its volumes are drawn again, with the same bytes."""
    settings = config(num_steps=60, num_volumes=6, nifti=False, redraw={"most": 1, "anatomy": True})
    seen: list[tuple[int, int]] = []
    killed: list[int] = []

    def kill_one() -> None:
        while len(killed) < 1:
            time.sleep(0.01)
            for child in children()[:1]:
                if child.cpu_times().user > 1.0 and list((tmp_path / "there").glob("samples.zarr/zarr.json")):
                    child.kill()
                    killed.append(child.pid)

    sample(data["checkpoint"], settings, tmp_path / "here", silent)
    assert children() == []
    thread = threading.Thread(target=kill_one)
    thread.start()
    sample(data["checkpoint"], settings, tmp_path / "there", lambda *numbers: seen.append(numbers), runner=runner)
    thread.join()
    assert children() == []  # what they had in memory has gone with them
    assert len(killed) == 1
    assert (seen[0], seen[-1]) == ((0, 360), (360, 360))
    assert seen == sorted(seen)
    assert artifact_files(tmp_path / "there") == artifact_files(tmp_path / "here")


def test_processes_of_this_machine_share_its_threads() -> None:
    with Pool(Local(2), one_thread=False) as pool:
        assert (pool.here, pool.remote, pool.num_workers) == (False, False, 2)
        ((_, threads),) = pool.each(work_items.num_threads, [0], str)
    assert threads == max(1, cores().amount // 2)
    with Pool(Local(), one_thread=False) as pool:
        assert (pool.here, pool.num_workers) == (True, 1)


def test_features_of_workers_are_those_of_this_process(data: dict[str, Ref], tmp_path: Path, runner: Address) -> None:
    store = VolumeStore.open(data["snapshot"].path)
    settings = EvaluateConfig(extractor="random", num_threads=1, device="cpu", batch_size=4)
    arguments = (Volumes(store, HounsfieldWindow(), None), store.volume_ids(), settings)
    found, counted = [], []
    for name, where in (("here", None), ("there", runner)):
        with Pool(where, one_thread=False) as pool:
            found.append(volume_features(*arguments, tmp_path / name, pool, counted.append))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.unique(found[0], axis=0).shape == (4, 2048)
    assert counted == [0, 4] * 2
    assert artifact_files(tmp_path / "there") == artifact_files(tmp_path / "here")


def test_what_is_missing_is_drawn(data: dict[str, Ref], tmp_path: Path) -> None:
    sample(data["checkpoint"], config(), tmp_path / "whole", silent)
    sample(data["checkpoint"], config(), tmp_path / "killed", silent)
    for name in ("generated-00001", "generated-00003"):
        (tmp_path / "killed" / "samples.zarr" / "commits" / f"{name}.json").unlink()
    sample(data["checkpoint"], config(), tmp_path / "killed", silent)
    one, other = (VolumeStore.open(tmp_path / name / "samples.zarr") for name in ("whole", "killed"))
    for name in one.volume_ids():
        assert one.commit_record(name).arrays == other.commit_record(name).arrays


# ---- errors --------------------------------------------------------------------------------------------------------------


def test_errors_come_back_as_what_they_are(data: dict[str, Ref], tmp_path: Path, runner: Address) -> None:
    model = tiny_model()
    model.fine.final_layer.linear.weight.fill_(3e38)
    broken = commit_checkpoint(tmp_path / "global", "global", {"snapshot": data["snapshot"]}, model=model)
    with pytest.raises(ComputationError, match=r"Of volume 0 \(seed \d+, .*not finite"):
        sample(broken, config(num_volumes=1), tmp_path / "out", silent, runner=runner)

    def work(function: Any) -> None:
        with Pool(runner, one_thread=False) as pool:
            list(pool.each(function, [1], lambda number: f"volume {number}"))

    with pytest.raises(OutOfMemoryError, match=r"^Out of memory. Set sample\.batch_size=1\.$"):
        work(work_items.runs_out)
    with pytest.raises(RuntimeError, match=r"(?s)^volume 1: KeyError on a worker\nTraceback.*no such thing"):
        work(work_items.faulty)
    with pytest.raises(ComputationError, match=r"^The process that worked on volume 1 ended twice \(signal SIGKILL\)"):
        work(work_items.dies)


def test_an_interrupt_ends_what_the_workers_of_a_scheduler_do(runner: Address) -> None:
    def interrupted() -> None:
        with Pool(runner, one_thread=False) as pool:
            for _ in pool.map(work_items.sleeps, [0.0, 3600.0, 3600.0], few=0):
                assert len(children()) >= 1
                psutil.Process().send_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    wait_for(lambda: not children())


# ---- GPUs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpus_draw_what_one_gpu_draws(data: dict[str, Ref], tmp_path: Path) -> None:
    settings = config(device="cuda")
    sample(data["checkpoint"], settings, tmp_path / "one", silent)
    Cuda().check()
    sample(data["checkpoint"], settings, tmp_path / "all", silent, runner=Cuda())
    assert artifact_files(tmp_path / "all") == artifact_files(tmp_path / "one")


def test_cuda_runner_starts_dask_cudas_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to it, with a cluster of this machine's cores in its place."""
    asked: dict[str, Any] = {}

    def stand_in(*, device_memory_limit: int, **settings: Any) -> LocalCluster:
        asked.update(settings, device_memory_limit=device_memory_limit)
        return LocalCluster(**settings)

    module = type(sys)("dask_cuda")
    module.LocalCUDACluster = stand_in
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    Cuda(1).check()
    with Pool(Cuda(1), one_thread=False) as pool:
        assert dict(pool.each(abs, [-1, 2], str)) == {-1: 1, 2: 2}
    assert (asked["n_workers"], asked["threads_per_worker"], asked["device_memory_limit"]) == (1, 1, 0)
    assert Cuda(1).on_this_machine(one_thread=True) == Local()  # ingest needs no GPU
