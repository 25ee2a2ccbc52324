"""Where memory does not suffice: what is raised says what would fit, by the arithmetic of `prdit plan`."""

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from prdit_models.networks.config import model_config
from prdit_models.plan import GPU_CONTEXT_BYTES, Work, memory_of, of_network
from storage.artifacts import Ref
from storage.errors import InputError, OutOfMemoryError
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import load_extractor
from tasks.evaluate.run import _measure
from tasks.model import memory as module
from tasks.model.memory import Room, evaluation_advice, out_of_memory_explained, sampling_advice, training_advice
from tasks.run.stage import StageRun
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tasks.train.__main__ import _train
from tasks.train.launch import launch
from tests.factories import global_config, local_config, make_data, train_spec

GIB = 2**30
PLANNED = of_network(model_config("S/12/2", 64))
TRAIN, SAMPLE = Work("global", "train"), Work("global", "sample")


def room_for(work: Work, batch: int) -> Room:
    """A card that holds exactly this."""
    size = memory_of(work, PLANNED, batch, "cuda").total + GPU_CONTEXT_BYTES
    return Room("cuda", "a card", 2 * size, size)


def test_training_keeps_its_volumes_per_step() -> None:
    room = room_for(TRAIN, 3)
    said = training_advice(PLANNED, "recipe.global", TRAIN, room, batch_size=8, accumulation=1)
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
    said = training_advice(PLANNED, "recipe.global", TRAIN, room_for(TRAIN, 64), batch_size=4, accumulation=2)
    assert (
        "batch_size=2, recipe.global.accumulation=4; or recipe.global.batch_size=4, recipe.global.accumulation=2, "
        in said
    )
    said = sampling_advice(PLANNED, SAMPLE, room_for(SAMPLE, 64), batch_size=4)
    assert "sample.batch_size=3" in said


def test_where_no_batch_fits_it_says_so() -> None:
    tiny = Room("cuda", "a card", 80 * GIB, GPU_CONTEXT_BYTES + 2**20)
    said = training_advice(PLANNED, "recipe.global", TRAIN, tiny, batch_size=4, accumulation=1)
    assert "No batch does" in said
    assert "Other processes hold 79.4 GiB" in said
    assert "No batch does" in sampling_advice(PLANNED, SAMPLE, tiny, batch_size=4)


def test_evaluation_halves_its_batch() -> None:
    card, host = Room("cuda", "a card", GIB, GIB), Room("cpu", "this machine", GIB, GIB)
    assert "Set evaluate.batch_size=2 or evaluate.device=cpu;" in evaluation_advice(card, batch_size=4)
    assert "Set evaluate.device=cpu;" in evaluation_advice(card, batch_size=1)
    assert evaluation_advice(host, batch_size=1).endswith("Use a machine with more memory.")


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
    monkeypatch.setattr(module, "room_of", lambda device: Room("cuda", "a card", GIB, GIB))


def run_out(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.usefixtures("small_card")
def test_training_sampling_and_evaluation_explain_it(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = _train(train_spec(local_config(), *data, tmp_path / "local"), threading.Event())
    spec = train_spec(global_config(batch_size=2), *data, tmp_path / "global", start=local)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.train.loop.Training._losses", run_out)
        with pytest.raises(OutOfMemoryError, match=r"recipe\.global\.batch_size=1, recipe\.global\.accumulation=2"):
            _train(spec, threading.Event())
    checkpoint = _train(spec, threading.Event())
    with monkeypatch.context() as patch:
        patch.setattr("prdit_models.families.denoiser.Denoiser.generate", run_out)
        settings = SampleConfig(num_volumes=3, num_steps=2, batch_size=3, device="cpu", num_threads=1)
        with pytest.raises(OutOfMemoryError, match=r"sample\.batch_size=2"):
            sample(checkpoint, settings, tmp_path / "samples", lambda done, total: None)


@pytest.mark.usefixtures("small_card")
def test_features_explain_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = load_extractor(EvaluateConfig())
    monkeypatch.setattr("prdit_models.metrics.medicalnet.MedicalNet.forward", run_out)

    class Window:
        def to_model(self, values: torch.Tensor) -> torch.Tensor:
            return values

    setting: Any = type("Setting", (), {"window": Window()})()
    volume = torch.zeros(8, 8, 8).numpy()
    options: Any = {"batch_size": 2, "device": torch.device("cpu"), "done": lambda count: None}
    with pytest.raises(OutOfMemoryError, match=r"Set evaluate\.batch_size=1 or evaluate\.device=cpu"):
        _measure(extractor, setting, ["a", "b"], lambda name: volume, tmp_path, (), **options)


OUT_OF_MEMORY = """
import torch
from tasks.model import memory
memory.room_of = lambda device: memory.Room("cuda", "a card", 2**30, 2**30)
def run_out(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory.")
from tasks.train import loop
loop.Training._losses = run_out
"""


def test_the_message_comes_back_from_the_subprocess(
    data: tuple[Ref, Ref], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    spec = train_spec(local_config(), *data, tmp_path / "local")
    message = r"^Out of memory on cuda .*: train local, fp32, with batch_size 2 needs .*recipe\.local\.batch_size=1, "
    with pytest.raises(OutOfMemoryError, match=message):
        launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None)
    assert "OutOfMemoryError: CUDA out of memory." in (spec.directory / "work" / "train.log").read_text()
