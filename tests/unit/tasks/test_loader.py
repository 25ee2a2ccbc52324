"""Batches: the same for every number of ranks and workers and from every place on; errors and ends of worker processes."""

import gc
import itertools
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from storage.errors import DamagedArtifactError
from tasks.train.augmentation import Augmentation, AugmentationConfig
from tasks.train.loader import Loaded, Loader, Order, default_workers, volume_seed
from tests.processes import PATIENCE_S, alive, wait_for
from tests.unit.tasks.loader_data import damage, dataset, write_store

AUGMENTED = Augmentation(AugmentationConfig(flip=0.5, offset_hu=30, gain=0.1, rotation_deg=10, scale=0.1), max_shift=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("loader") / "store")


def draw(turn: int, generator: torch.Generator) -> dict[str, Tensor]:
    if turn == 2:
        return {}
    return {
        "noise": torch.randn(2, generator=generator) + 100 * turn,
        "t": torch.randint(1000, (), generator=generator),
    }


def loader(store: Path, rank: int = 0, world: int = 1, num_workers: int = 0) -> Loader:
    data = dataset(store, augmentation=AUGMENTED)
    return Loader(data, Order(len(data), 4, seed=3, rank=rank, world=world), draw, 3, num_workers, pin=False)


def take(made: Loader, first: int, number: int) -> list[Loaded]:
    with closing(made.batches(first)) as batches:  # type: ignore[type-var]
        return list(itertools.islice(batches, number))


def joined(parts: list[Loaded]) -> tuple[Tensor, list[int], list[dict[str, Tensor]]]:
    """The batch of all ranks."""
    assert all(len(part.draws) == 3 and part.draws[2] == {} for part in parts)
    draws = [{name: torch.cat([part.draws[k][name] for part in parts]) for name in ("noise", "t")} for k in (0, 1)]
    return torch.cat([part.volumes for part in parts]), [i for part in parts for i in part.indices], draws


def assert_same(found: list[Loaded], expected: Loaded) -> None:
    volumes, indices, draws = joined(found)
    assert indices == expected.indices
    assert torch.equal(volumes, expected.volumes)
    for turn, wanted in zip(draws, expected.draws[:2], strict=True):
        assert all(torch.equal(turn[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("world", "num_workers"), [(1, 2), (2, 0), (2, 1), (4, 0)])
def test_global_batches_do_not_depend_on_ranks_or_workers(store: Path, world: int, num_workers: int) -> None:
    one = take(loader(store), 0, 5)
    ranks = [take(loader(store, rank, world, num_workers), 0, 5) for rank in range(world)]
    for place in range(5):
        assert_same([rank[place] for rank in ranks], one[place])
    assert one[0].volumes.shape == (4, 1, 16, 16, 16)
    assert (one[0].draws[0]["t"].shape, one[0].draws[0]["t"].dtype) == ((4,), torch.int64)
    assert not torch.equal(one[0].draws[0]["noise"] + 100, one[0].draws[1]["noise"])  # each turn has its own


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resume_on_another_number_of_ranks_goes_on_with_the_same_batches(store: Path, num_workers: int) -> None:
    one = take(loader(store), 0, 6)
    for world, first in ((2, 3), (1, 4), (4, 5)):
        ranks = [take(loader(store, rank, world, num_workers if world == 2 else 0), first, 1) for rank in range(world)]
        assert_same([rank[0] for rank in ranks], one[first])


def test_every_volume_is_used_once_before_any_twice() -> None:
    order = Order(5, 3, seed=1)
    used = [order.index(number) for place in range(7) for number in order.numbers(place)]
    epochs = [used[5 * epoch : 5 * epoch + 5] for epoch in range(4)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew
    assert [Order(2, 8, seed=1).index(n) for n in range(8)].count(0) == 4  # a store smaller than the batch
    assert used != [Order(5, 3, seed=2).index(number) for number in range(21)]


def test_ranks_share_a_batch() -> None:
    assert [list(Order(9, 6, 0, rank, 3).numbers(2)) for rank in range(3)] == [[12, 13], [14, 15], [16, 17]]
    with pytest.raises(ValueError, match="must divide batch_size"):
        Order(9, 6, 0, 0, 4)


def test_seeds_differ_by_seed_number_and_stream() -> None:
    seeds = {volume_seed(seed, number, stream) for seed in range(4) for number in range(50) for stream in range(3)}
    assert len(seeds) == 600
    assert volume_seed(3, 7, 1) == 1777893851097209630  # resumed trainings rely on it


def test_workers_by_device() -> None:
    assert default_workers(torch.device("cpu")) == 0
    assert default_workers(torch.device("cuda"), 1) == min(4, len(os.sched_getaffinity(0)))
    assert default_workers(torch.device("cuda"), 1000) == 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_shard_is_named_when_it_is_first_used(tmp_path: Path, num_workers: int) -> None:
    path = write_store(tmp_path / "store")
    shard = damage(path, "v2", 1)
    data = dataset(path)
    made = Loader(data, Order(len(data), 1, seed=3), draw, 1, num_workers, pin=False)
    good = list(itertools.takewhile(lambda n: made_order(n) != 2, itertools.count()))
    batches = made.batches(0)
    for _ in good:
        next(batches)
    with pytest.raises(DamagedArtifactError) as error:
        next(batches)
    assert str(error.value).startswith(f"{shard} was changed after it was committed (SHA-256 differs). `prdit ingest")


def made_order(number: int) -> int:
    return Order(5, 1, seed=3).index(number)


@pytest.fixture
def no_others() -> None:
    """Workers of iterators that an error's traceback in an earlier test still refers to end with it."""
    gc.collect()


def loader_processes() -> list[psutil.Process]:
    """Of this process, which other tests may have left some of another kind."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # another's, which has just ended
            if child.name() == "pt_data_worker":
                found.append(child)
    return found


@pytest.mark.usefixtures("no_others")
def test_a_worker_that_dies_is_an_error_that_says_what_to_do(store: Path) -> None:
    batches = loader(store, num_workers=1).batches(0)
    next(batches)
    (worker,) = loader_processes()
    worker.kill()  # which does not raise here
    wait_for(lambda: worker.status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(RuntimeError, match=r"died \(SIGKILL\)\. If memory .* or fewer loader_workers \(now 1"):
        next(batches)
    assert not loader_processes()


@pytest.mark.usefixtures("no_others")
def test_workers_end_with_their_iterator_and_survive_signals_to_the_job(store: Path) -> None:
    made = loader(store, num_workers=2)
    batches = made.batches(0)
    next(batches)
    workers = loader_processes()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            worker.send_signal(number)
    for _ in range(8):
        next(batches)
    assert made.waited_s > 0
    del batches
    assert not loader_processes()


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.tasks.test_loader import loader
batches = loader(Path(sys.argv[1]), num_workers=2).batches(0)
next(batches)
import psutil
print(*[child.pid for child in psutil.Process().children()], flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("import time; time.sleep(3600)", -9), ("1 / 0", 1)])
def test_no_worker_outlives_the_training(store: Path, end: str, code: int) -> None:
    """Killed at once, or at its end by an exception, with an iterator that is still open."""
    script = SCRIPT.format(end=end)
    command = [sys.executable, "-c", script, str(store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        if code == -9:
            process.kill()
        assert process.wait(PATIENCE_S) == code
        said = process.stderr.read()
    assert said.count("Traceback") == (code == 1), said
    wait_for(lambda: not [pid for pid in pids if alive(pid)])
