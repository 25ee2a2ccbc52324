"""Cores and memory of this job: a real affinity, real cgroups where this machine lets us make one, recorded ones elsewhere."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.run.fanout import default_num_workers
from tasks.run.machine import cores, limit_threads, memory_available

GIB = 2**30
V1 = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
V2 = "26 22 0:23 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
# As Slurm confines a job: the limits are on the job's group, three above the process.
SLURM = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"


def recorded(root: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    """A tree of /proc and /sys/fs/cgroup."""
    all_files = {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}
    all_files |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in all_files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def a_large_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded trees belong to a host of 64 cores with 200 GiB free."""
    if "real" in request.node.name:
        return
    memory = psutil.virtual_memory()._replace(total=256 * GIB, available=200 * GIB)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_without_cgroups_the_machine_decides(tmp_path: Path) -> None:
    assert cores(tmp_path) == cores(tmp_path / "nothing")
    assert (cores(tmp_path).amount, cores(tmp_path).limit) == (64, "machine")
    assert (memory_available(tmp_path).amount, memory_available(tmp_path).limit) == (200 * GIB, "machine")


@pytest.mark.parametrize(("quota", "expected"), [("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1)])
def test_v2_a_limit_above_the_process_holds(tmp_path: Path, quota: str, expected: int) -> None:
    job = str(Path(SLURM).parents[2]).lstrip("/")
    files = {
        f"{SLURM[1:]}/cpu.max": "max 100000\n",
        f"{SLURM[1:]}/memory.max": "max\n",
        f"{SLURM[1:]}/memory.current": "1000\n",
        f"{job}/cpu.max": quota + "\n",
        f"{job}/memory.max": f"{16 * GIB}\n",
        f"{job}/memory.current": f"{6 * GIB}\n",
        f"{job}/memory.stat": f"anon {4 * GIB}\ninactive_file {2 * GIB}\nactive_file 0\n",
    }
    root = recorded(tmp_path, V2.format(top="/"), f"0::{SLURM}\n", files)
    found, memory = cores(root), memory_available(root)
    assert (found.amount, found.total) == (expected, 64)
    assert found.limit == f"cgroup {root}/sys/fs/cgroup/{job}/cpu.max"
    assert (memory.amount, memory.total) == (12 * GIB, 16 * GIB)  # 2 of the 6 GiB are cache
    assert memory.limit == f"cgroup {root}/sys/fs/cgroup/{job}/memory.max"


def test_v2_in_a_container_with_a_group_of_its_own(tmp_path: Path) -> None:
    files = {"cpu.max": "200000 100000\n", "memory.high": f"{GIB}\n", "memory.current": f"{2 * GIB}\n"}
    root = recorded(tmp_path, V2.format(top="/../../.."), "0::/\n", files)
    assert cores(root).amount == 2
    assert memory_available(root).amount == 0  # over the soft limit: nothing to take


@pytest.mark.parametrize("top", ["/", "/docker/abc"])
def test_v1(tmp_path: Path, top: str) -> None:
    place = "docker/abc/" if top == "/" else ""  # without a namespace, the container's own group is what is mounted
    files = {
        f"cpu,cpuacct/{place}cpu.cfs_quota_us": "300000\n",
        f"cpu,cpuacct/{place}cpu.cfs_period_us": "100000\n",
        f"memory/{place}memory.limit_in_bytes": f"{8 * GIB}\n",
        f"memory/{place}memory.usage_in_bytes": f"{3 * GIB}\n",
        f"memory/{place}memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}\n",
    }
    if place:
        files |= {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}
    root = recorded(tmp_path, V1.format(top=top), "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n", files)
    assert (cores(root).amount, memory_available(root).amount) == (3, 6 * GIB)


def test_native_threads_follow_a_quota_unless_they_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr("tasks.run.machine._ROOT", tmp_path)
    limit_threads(environment)  # all 64
    assert environment == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5})
    limit_threads(environment)
    assert environment == {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "3"}


ASK = """
import json, torch
from tasks.model.compute import ComputeConfig, pick_device
from tasks.run.fanout import default_num_workers
from tasks.run.machine import cores, memory_available
pick_device(ComputeConfig(device="cpu"))
found, memory = cores(), memory_available()
print(json.dumps([found.amount, found.limit, torch.get_num_threads(), default_num_workers(64, 1), memory.amount, memory.limit]))
"""


def ask(*prefix: str) -> list[object]:
    done = subprocess.run([*prefix, sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    answer: list[object] = json.loads(done.stdout)
    return answer


def test_real_affinity_decides_threads_and_workers() -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one core cannot be divided")
    one = str(min(os.sched_getaffinity(0)))
    assert ask("taskset", "-c", one)[:4] == [1, "affinity", 1, 1]


@contextlib.contextmanager
def cgroup(controller: str, limits: dict[str, str]) -> Iterator[Path]:
    """A cgroup of version 1 or 2 inside ours; skips where this user may not make one."""
    folder = Path("/sys/fs/cgroup") / controller / f"prdit-test-{os.getpid()}"
    if not (folder.parent / "cgroup.procs").exists():
        folder = Path("/sys/fs/cgroup") / folder.name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        for name, value in limits.items():
            try:
                (folder / name).write_text(value)
            except OSError as error:
                pytest.skip(f"{name} cannot be set here: {error}")
        yield folder
    finally:
        folder.rmdir()


def in_group(folder: Path) -> tuple[str, ...]:
    return "sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"


def test_real_cpu_quota_decides_threads_and_workers() -> None:
    v2 = not Path("/sys/fs/cgroup/cpu").is_dir()
    with cgroup("cpu", {"cpu.max": "100000 100000"} if v2 else {"cpu.cfs_quota_us": "100000"}) as folder:
        amount, limit, threads, workers, *_ = ask(*in_group(folder))
    assert (amount, threads, workers) == (1, 1, 1)
    assert limit == f"cgroup {folder / ('cpu.max' if v2 else 'cpu.cfs_quota_us')}"


def test_real_memory_limit_decides_workers() -> None:
    name = "memory.limit_in_bytes" if Path("/sys/fs/cgroup/memory").is_dir() else "memory.max"
    with cgroup("memory", {name: str(2 * GIB)}) as folder:
        *_, memory, limit = ask(*in_group(folder))
    assert limit == f"cgroup {folder / name}"
    assert isinstance(memory, int)
    assert GIB < memory < 2 * GIB  # less what the asking process itself has taken


def test_workers_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": f"{4 * GIB}\n", "memory.current": "0\n", "cpu.max": "800000 100000\n"}
    monkeypatch.setattr("tasks.run.machine._ROOT", recorded(tmp_path, V2.format(top="/"), "0::/\n", files))
    assert default_num_workers(64, 100) == 8  # the quota
    assert default_num_workers(64, 1500) == 2  # the memory
    assert default_num_workers(1, 100) == 1  # the work
