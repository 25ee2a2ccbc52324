"""How many volumes are drawn at once, on a simulated device and by measuring this one, and what happens where it is too much."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prdit_models.families.denoiser import Denoiser
from prdit_models.networks.config import CascadeConfig, ModelConfig
from storage.artifacts import Ref, artifact_files
from storage.errors import OutOfMemoryError
from storage.volume_store import VolumeStore
from tasks.sample import batch
from tasks.sample.batch import AtOnce, DeviceGauge, at_once, largest_that_fits, threads_that_fit
from tasks.sample.chunk import _Lane, _Share, draw_chunk
from tasks.sample.config import SampleConfig
from tasks.sample.draw import Drawing, Painter, volume_seed
from tasks.sample.run import _chunks, sample
from tasks.sample.settle import Attempt
from tests.factories import make_data
from tests.unit.tasks.checkpoints import TINY, commit_checkpoint, commit_pair, network

CPU = torch.device("cpu")


class Card:
    """A device on which a model takes `fixed` and each volume `each` bytes, some of them more than the first two show."""

    def __init__(self, size: int, fixed: int, each: int, more: int = 0) -> None:
        self.size, self.fixed, self.each, self.more = size, fixed, each, more
        self.measured: list[int] = []

    def peak(self, count: int) -> int:
        self.measured.append(count)
        needed = self.fixed + count * self.each + max(0, count - 2) * self.more
        if needed > self.size:
            raise OutOfMemoryError(f"{needed} of {self.size}")
        return needed

    def room(self) -> int:
        return self.size


@pytest.mark.parametrize(
    ("card", "most", "found", "measured"),
    [
        (Card(1000, 100, 50), 64, 16, [1, 2, 16]),  # (0.9 · 1000 - 100) / 50
        (Card(1000, 100, 50), 8, 8, [1, 2, 8]),
        (Card(1000, 100, 50), 1, 1, [1]),
        (Card(1000, 100, 50, more=50), 64, 8, [1, 2, 16, 8]),
        (Card(1000, 100, 450), 64, 1, [1, 2]),  # two fill it, and leave no reserve
        (Card(1000, 100, 500), 64, 1, [1, 2]),
        (Card(10_000, 100, 0), 64, 64, [1, 2, 64]),
    ],
)
def test_the_largest_batch_is_extrapolated_then_tried(card: Card, most: int, found: int, measured: list[int]) -> None:
    assert (largest_that_fits(card, most), card.measured) == (found, measured)


def test_a_volume_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(OutOfMemoryError):
        largest_that_fits(Card(100, 100, 50), 8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Ref:
    root = tmp_path_factory.mktemp("checkpoints")
    return commit_pair(root, *make_data(root))[1]


def drawing_of(checkpoint: Ref, store: Path, **changes: object) -> Drawing:
    values = {"num_volumes": 4, "num_steps": 5, "device": "cpu", "num_threads": 4}
    return Drawing(checkpoint, SampleConfig.model_validate(values | changes), store)


def test_this_device_is_measured_by_two_evaluations(checkpoint: Ref, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(drawing_of(checkpoint, Path()), CPU)
    evaluations: list[int] = []
    painter.model.register_forward_hook(lambda *_: evaluations.append(1))
    gauge = DeviceGauge(painter)
    one, two, three = (gauge.peak(count) for count in (1, 2, 3))
    assert len(evaluations) == 3 * 2
    weights = sum(4 * tensor.numel() for tensor in painter.model.parameters())
    assert weights < one < two < three
    assert (three - two) == pytest.approx(two - one, rel=0.1)  # which is extrapolated
    assert gauge.room() > 2**26


def test_on_a_cpu_volumes_are_drawn_one_by_one_at_the_same_time(
    checkpoint: Ref, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(most: int, **changes: object) -> AtOnce:
        threads_that_fit.cache_clear()
        return at_once(drawing_of(checkpoint, Path(), **changes), most)

    assert found(8) == AtOnce(batch=1, batches=4)
    assert found(3) == AtOnce(1, 3)
    assert found(8, batch_size=2) == AtOnce(1, 2)
    assert found(8, batch_size=16) == AtOnce(1, 4)
    assert found(8, num_threads=1) == AtOnce(1, 1)
    monkeypatch.setattr(DeviceGauge, "room", lambda self: (self.peak(1) + self.peak(2)) // 2)
    assert found(8) == AtOnce(1, 1)
    threads_that_fit.cache_clear()


def test_chunks_share_the_work_evenly_and_give_each_thread_some() -> None:
    def sizes(batches: int, workers: int, threads: int) -> list[int]:
        return [len(chunk) for chunk in _chunks([(k,) for k in range(batches)], workers, threads)]

    assert sizes(1000, 2, 1) == [16] * 62 + [8]
    assert sizes(8, 2, 1) == [1] * 8
    assert sizes(64, 2, 16) == [16] * 4
    assert sizes(4, 2, 16) == [2, 2]
    assert sizes(1, 3, 1) == [1]


def limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """No more than so many volumes fit, drawn together or at the same time; the sizes that were asked for."""
    real, asked, now = Denoiser.generate, [], []

    def generate(self: Denoiser, *arguments: object, **named: object) -> object:
        count = len(arguments[3])
        asked.append(count)
        now.append(count)
        try:
            if sum(now) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return real(self, *arguments, **named)
        finally:
            now.remove(count)

    monkeypatch.setattr(Denoiser, "generate", generate)
    return asked


def test_a_batch_that_does_not_fit_is_halved(checkpoint: Ref, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(drawing_of(checkpoint, Path()), CPU)
    seeds = [volume_seed(42, index) for index in range(8)]
    whole = painter.draw(seeds)
    asked = limited(monkeypatch, 3)
    halved = painter.draw(seeds)
    assert asked == [8, 4, 2, 2, 2, 2]
    assert abs(halved - whole).max() < 1e-3
    assert len(painter.draw(seeds[:3])) == 3
    assert asked[6:] == [2, 1]  # it is not tried again
    limited(monkeypatch, 0)
    with pytest.raises(OutOfMemoryError, match=r"sample\.batch_size 1"):
        painter.draw(seeds)


def test_a_refined_model_draws_in_bulk(tmp_path: Path) -> None:
    refined = CascadeConfig(ModelConfig(16, 6, 4, 1, 24, 1, 0), TINY)
    above = commit_checkpoint(tmp_path / "refiner", "refiner", {}, model=network(refined))
    for name, threads in (("one", 1), ("two", 2)):
        settings = drawing_of(above, Path(), num_threads=threads, num_volumes=3).config
        sample(above, settings, tmp_path / name, lambda *_: None)
    assert artifact_files(tmp_path / "two") == artifact_files(tmp_path / "one")
    store = VolumeStore.open(tmp_path / "two" / "samples.zarr")
    found = [store.read_level(name).hu for name in store.volume_ids()]
    assert [hu.shape for hu in found] == [(16, 16, 16)] * 3
    assert abs(found[0].astype(int) - found[1]).max() > 100
    painter = Painter(drawing_of(above, Path()), CPU)
    together = painter.draw([volume_seed(42, index) for index in range(3)])  # as a GPU does
    assert abs(1000 * together - found).max() < 2


def test_volumes_that_do_not_fit_at_the_same_time_are_drawn_alone(
    checkpoint: Ref, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sample(checkpoint, drawing_of(checkpoint, Path(), num_threads=1).config, tmp_path / "one", lambda *_: None)
    limited(monkeypatch, 1)
    sample(checkpoint, drawing_of(checkpoint, Path(), batch_size=4).config, tmp_path / "four", lambda *_: None)
    assert "4 volumes at once do not fit; what did not is drawn alone later" in caplog.text
    assert artifact_files(tmp_path / "four") == artifact_files(tmp_path / "one")


def test_what_must_be_drawn_again_is_not_lost_with_a_volume_that_does_not_fit() -> None:
    class Writer:
        """Wants a second drawing of every volume."""

        def missing(self, index: int) -> bool:
            return True

        def settle(self, attempts: list[Attempt], volumes: object) -> Future[list[Attempt]]:
            done: Future[list[Attempt]] = Future()
            done.set_result([Attempt(one.index, 1) for one in attempts if not one.tried])
            return done

    class Model:
        drawing = SimpleNamespace(seed=lambda index, tried: (index, tried))

        def __init__(self) -> None:
            self.drawn: list[tuple[int, int]] = []

        def draw(self, seeds: list[tuple[int, int]], callback: object) -> None:
            self.drawn += seeds
            if seeds == [(0, 1)]:
                raise OutOfMemoryError("too much")

    model, share = Model(), _Share([(0,), (1,)], Writer())
    with pytest.raises(OutOfMemoryError):
        _Lane(model, share).run()
    assert model.drawn == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert share.lost == [(0,)]


def test_a_batch_of_a_gpu_is_split_on_a_cpu(checkpoint: Ref, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = drawing_of(checkpoint, tmp_path / "samples.zarr", num_volumes=3)
    sample(checkpoint, drawing.config.model_copy(update={"num_volumes": 1}), tmp_path, lambda *_: None)
    monkeypatch.setattr(batch, "threads_that_fit", lambda drawing, threads: threads)
    asked = limited(monkeypatch, 100)
    drawn = draw_chunk(drawing, [(0, 1), (2,)])
    assert asked == [1, 1]  # volume 0 was there
    assert (drawn.volumes, drawn.excluded) == (2, ())
