"""Where memory does not suffice: what is raised says what would fit, by the arithmetic of `prdit plan`."""

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks.config import model_config
from prdit_models.plan import GPU_CONTEXT_BYTES, Work, memory_of, of_network
from storage.artifacts import Ref
from storage.errors import InputError, OutOfMemoryError
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import Volumes, volume_features
from tasks.model import memory as module
from tasks.model.memory import Room, Tried, evaluation_advice, out_of_memory_explained, sampling_advice, training_advice
from tasks.run.fanout import Pool
from tasks.run.stage import StageRun
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.train.__main__ import _Stop, _train
from tasks.train.launch import launch
from tests.factories import (
    global_config,
    in_the_ranks,
    local_config,
    make_data,
    make_store,
    small_config,
    train_spec,
    trained,
)

GIB = 2**30
PLANNED = of_network(model_config("S/12/2", 64))
TRAIN, SAMPLE = Work("global", "train"), Work("global", "sample")


def room_for(work: Work, batch: int) -> Room:
    """A card that holds exactly this."""
    size = memory_of(work, PLANNED, batch, "cuda").total + GPU_CONTEXT_BYTES
    return Room("cuda", "a card", 2 * size, size)


def test_training_keeps_its_volumes_per_step() -> None:
    room = room_for(TRAIN, 3)
    said = training_advice(PLANNED, "recipe.global", TRAIN, room, Tried(8))
    assert "recipe.global.batch_size=2, recipe.global.accumulation=4;" in said  # 3 fits, but does not divide 8
    again = Work("global", "train", checkpointing=True)
    [size] = re.findall(
        r"batch_size=(\d+), recipe\.global\.accumulation=(\d+), recipe\.global\.checkpointing=true", said
    )
    assert int(size[0]) * int(size[1]) == 8
    assert memory_of(again, PLANNED, int(size[0]), "cuda").total <= room.for_tensors
    assert size[0] == "8" or memory_of(again, PLANNED, 2 * int(size[0]), "cuda").total > room.for_tensors
    needed = memory_of(TRAIN, PLANNED, 8, "cuda").total / GIB
    has = f"{room.total / GIB:.1f} GiB, of which this process can have {room.available / GIB:.1f}"
    assert said.startswith(
        f"Out of memory on cuda (a card: {has}): train global, fp32, with batch_size 8 needs {needed:.1f} GiB by `prdit plan`."
    )


def test_what_has_just_failed_is_not_advised_again() -> None:
    """The plan is an estimate; it may have held what did not fit."""
    said = training_advice(PLANNED, "recipe.global", TRAIN, room_for(TRAIN, 64), Tried(4, 2))
    assert (
        "batch_size=2, recipe.global.accumulation=4; or recipe.global.batch_size=4, recipe.global.accumulation=2, "
        in said
    )
    said = sampling_advice(PLANNED, SAMPLE, room_for(SAMPLE, 64), batch_size=4)
    assert "sample.batch_size=3" in said


def test_where_no_batch_fits_it_says_so() -> None:
    tiny = Room("cuda", "a card", 80 * GIB, GPU_CONTEXT_BYTES + 2**20)
    said = training_advice(PLANNED, "recipe.global", TRAIN, tiny, Tried(4))
    assert "No batch does" in said
    assert "Other processes hold 79.4 GiB" in said
    assert "No batch does" in sampling_advice(PLANNED, SAMPLE, tiny, batch_size=4)


def test_evaluation_halves_its_batch() -> None:
    card, host = Room("cuda", "a card", GIB, GIB), Room("cpu", "this machine", GIB, GIB)
    assert "Set evaluate.batch_size=2 or evaluate.device=cpu;" in evaluation_advice(card, batch_size=4)
    assert "Set evaluate.device=cpu;" in evaluation_advice(card, batch_size=1)
    assert evaluation_advice(host, batch_size=1).endswith("Use a machine with more memory.")
    smaller = "Or set a smaller evaluate.extractor.size; the figures are then not comparable with others."
    assert evaluation_advice(host, batch_size=1, resized=True).endswith(f"Use a machine with more memory. {smaller}")


@pytest.mark.parametrize(
    "error", [MemoryError("host"), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_of_the_host_is_explained(error: Exception) -> None:
    explained = out_of_memory_explained(torch.device("cpu"), lambda room: f"{room.device} {room.title}")
    with pytest.raises(OutOfMemoryError, match=r"^cpu this machine$") as caught, explained:
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), InputError("mine"), TypeError("x")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, out_of_memory_explained(torch.device("cpu"), lambda room: "none"):
        raise error
    assert caught.value is error


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a card of one GiB would be taken for."""
    monkeypatch.setattr(module, "room_of", lambda device, sharing=1: Room("cuda", "a card", GIB, GIB))


def run_out(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.usefixtures("small_card")
def test_training_sampling_and_evaluation_explain_it(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = trained(train_spec(local_config(steps=1), *data, tmp_path / "local"))
    spec = train_spec(global_config(batch_size=2, steps=1), *data, tmp_path / "global", start=local)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.train.stepper.Stepper.evaluate", run_out)
        with pytest.raises(OutOfMemoryError, match=r"recipe\.global\.batch_size=1, recipe\.global\.accumulation=2"):
            _train(spec, 1, nullcontext, _Stop())
    checkpoint = trained(spec)
    with monkeypatch.context() as patch:
        patch.setattr("prdit_models.families.denoiser.Denoiser.generate", run_out)
        settings = SampleConfig(num_volumes=3, num_steps=2, batch_size=3, device="cpu", num_threads=1)
        with pytest.raises(OutOfMemoryError, match=r"sample\.batch_size 1 .*No batch does: sample on another device"):
            sample(checkpoint, settings, tmp_path / "samples", lambda done, total: None)


@pytest.mark.usefixtures("small_card")
def test_features_explain_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prdit_models.metrics.extractors.medicalnet.MedicalNet.forward", run_out)
    store = VolumeStore.open(make_store(tmp_path / "store").path)
    volumes = Volumes(store, HounsfieldWindow(), None)
    config = EvaluateConfig(extractor="random", batch_size=2, device="cpu", num_threads=1)
    with (
        Pool(one_thread=False) as pool,
        pytest.raises(OutOfMemoryError, match=r"1 volume\(s\) together\. Set evaluate\.device=cpu"),
    ):
        volume_features(volumes, store.volume_ids(), config, tmp_path, pool, lambda count: None)


OUT_OF_MEMORY = """
import torch
from tasks.model import memory
memory.room_of = lambda device, sharing=1: memory.Room("cuda", "a card", 2**30, 2**30)
def run_out(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory.")
from tasks.train import stepper
stepper.Stepper.evaluate = run_out
"""


def test_the_message_comes_back_from_the_subprocess(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_ranks(OUT_OF_MEMORY, tmp_path, monkeypatch)
    spec = train_spec(small_config(), *data, tmp_path / "local")
    message = r"^Out of memory on cuda .*: train local, fp32, with batch_size 2 needs .*recipe\.local\.batch_size=1, "
    with pytest.raises(OutOfMemoryError, match=message):
        launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None)
    assert "OutOfMemoryError: CUDA out of memory." in (spec.directory / "work" / "node-0.log").read_text()
