"""A training that ends when its seconds are over: validation does not count, and resuming goes on counting."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from storage.artifacts import load_provenance
from storage.checkpoints import ResumeStates
from storage.documents.checkpoint import Checkpoint
from storage.documents.training_state import TrainingState
from storage.errors import DamagedArtifactError
from storage.files import json_text, sha256_json
from tasks.train import loop
from tasks.train.__main__ import _commit
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tests.factories import local_config, make_data, train_spec
from tests.unit.storage.documents.examples import POSITION


@pytest.fixture
def _a_second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is read at both ends of a step and goes on by a second each time it is read."""
    readings = iter(range(10_000))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(readings))))


def run(spec: Any, stop_after: int | None = None) -> Training:
    training = Training(assemble(spec), spec)
    training.run(lambda: training.progress.step == stop_after)
    return training


@pytest.mark.usefixtures("_a_second_a_step")
def test_it_ends_after_the_step_that_uses_up_the_seconds(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    spec = train_spec(local_config(steps=100, seconds=3.5, val_every=1), *data, tmp_path / "local")
    training = run(spec)
    ref = _commit(spec, training.cost())
    assert Checkpoint.load(ref.path).step == 4  # 3 s are not 3.5, 4 s are
    cost = load_provenance(ref).cost
    assert cost is not None
    assert (cost.seconds, cost.steps, cost.volumes, cost.device, cost.ranks) == (4.0, 4, 8, "cpu", 1)
    assert cost.peak_memory_bytes > 2**26


@pytest.mark.usefixtures("_a_second_a_step")
def test_a_stopped_one_goes_on_counting_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    config = local_config(steps=100, seconds=6, checkpoint_every=50)
    whole = train_spec(config, *data, tmp_path / "whole")
    run(whole)
    parts = train_spec(config, *data, tmp_path / "parts")
    with pytest.raises(Stopped):
        run(parts, stop_after=4)
    [(position, _)] = [
        found for found in [ResumeStates(parts.directory / "work" / "checkpoints").newest_good()] if found
    ]
    assert (position.step, position.seconds) == (4, 4.0)
    assert run(parts).progress.step == 6
    assert _commit(parts).digest == _commit(whole).digest
    assert run(parts).progress.step == 6  # one that has come to its end takes no further step


def test_steps_end_it_where_they_come_first(tmp_path: Path) -> None:
    spec = train_spec(local_config(steps=3, seconds=1e6), *make_data(tmp_path), tmp_path / "local")
    assert run(spec).progress.step == 3


@pytest.mark.parametrize("seconds", [0, -1, float("inf")])
def test_no_seconds_are_refused(seconds: float) -> None:
    with pytest.raises(ValidationError, match="seconds"):
        local_config(seconds=seconds)


def test_a_falling_rate_needs_a_known_end() -> None:
    with pytest.raises(ValidationError, match="Set lr_decay to 0"):
        local_config(seconds=10, lr_decay=0.5)


def test_keys_of_trainings_by_steps_are_what_they_were_before() -> None:
    assert "seconds" not in local_config().key_fields()
    assert local_config(seconds=10).key_fields()["seconds"] == 10.0


def test_states_from_before_seconds_were_counted_are_still_used() -> None:
    position = POSITION.model_dump(mode="json")
    del position["seconds"]
    files = dict.fromkeys(("model", "ema", "optimizer", "buffers"), "1" * 64)
    whole = {"position": position, "files": files}
    old = {"format_version": 4, **whole, "digest": sha256_json(whole)}
    state = TrainingState.parse(json_text(old).encode(), "state.json")
    assert state.position == POSITION.model_copy(update={"seconds": 0.0})
    changed = old | {"position": position | {"step": 101}}
    with pytest.raises(DamagedArtifactError, match="changed after it was written"):
        TrainingState.parse(json_text(changed).encode(), "state.json")
