"""A training of more steps goes on from a state of the shorter one; what differs in anything else is left alone."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.artifacts import artifact_files
from storage.checkpoints import ResumeStates
from storage.documents.pending import Pending
from storage.documents.training_state import GROUPS, BestValidation
from storage.files import sha256_file
from storage.refs import Ref
from tasks.train.extension import continue_shorter, find_state, settings_digest
from tasks.train.loop import Training
from tasks.train.setup import assemble
from tasks.train.spec import TrainSpec
from tests.factories import make_data, small_config, train_spec
from tests.logs import said
from tests.unit.storage.documents.examples import POSITION

SNAPSHOT = Ref(kind="snapshot", uri="/data/store", digest="sha256:1")
SPLIT = Ref(kind="split", uri="/work/split", digest="sha256:2")


def spec_of(root: Path, name: str, *, split: Ref = SPLIT, recipe: int = 3, **settings: Any) -> TrainSpec:
    """A training in a directory of its own; nothing of it is on disk but the folder."""
    spec = train_spec(small_config(**{"steps": 400} | settings), SNAPSHOT, split, root / "train-local" / name)
    return spec.model_copy(update={"provenance": spec.provenance | {"recipe": recipe}})


def train(spec: TrainSpec, steps: tuple[int, ...], **position: Any) -> ResumeStates:
    """What a training leaves on disk that has states of these steps."""
    work = spec.directory / "work"
    inputs = {"snapshot": spec.snapshot, "split": spec.split}
    Pending(stage=spec.stage, inputs=inputs).save(work)
    states = ResumeStates(work / "checkpoints", keep_at=steps[0])
    for step in steps:
        digest = settings_digest(spec)
        own = {"step": step, "steps": spec.config.steps, "settings": digest, "snapshot": spec.snapshot.digest}
        arrays = {group: {"w": np.full(3, step, np.float32)} for group in sorted(GROUPS)}
        states.save(POSITION.model_copy(update={"best": None, "snapshots": (), **own, **position}), arrays)
    points = [{"step": step, "time_ms": 7, "train/loss": 0.5} for step in range(10, steps[-1] + 1, 10)]
    last = {"step": steps[-1], "time_ms": 7, "note": "final", "val/loss": 0.5}
    (work / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in [*points, last]))
    return states


def found_step(spec: TrainSpec) -> int | None:
    found = find_state(spec)
    return None if found is None else found[1].position.step


def test_a_longer_training_goes_on_from_the_last_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short, long = spec_of(tmp_path, "a"), spec_of(tmp_path, "b", steps=1000)
    train(short, (300, 400))
    with caplog.at_level(logging.INFO):
        assert continue_shorter(long) == 400
    assert said(caplog) == [f"going on from step 400 of {short.directory}, which differs in its number of steps alone"]
    own = ResumeStates(long.directory / "work" / "checkpoints").newest_good()
    assert own is not None
    assert own[0].step == 400
    assert {group: arrays["w"].tolist() for group, arrays in own[1].items()} == dict.fromkeys(GROUPS, [400.0] * 3)
    lines = (long.directory / "work" / "metrics.jsonl").read_text().splitlines()
    assert lines == [f'{{"step": {step}, "time_ms": 7, "train/loss": 0.5}}' for step in range(10, 401, 10)]
    assert continue_shorter(long) is None  # it has a state of its own now
    assert sorted(path.name for path in (short.directory / "work" / "checkpoints").iterdir()) == [
        "step-00000300",
        "step-00000400",
    ]


def test_the_newest_state_of_all_siblings_counts_and_a_damaged_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longest = spec_of(tmp_path, "c", steps=1000)
    train(spec_of(tmp_path, "a", steps=500), (200, 300))
    states = train(spec_of(tmp_path, "b", steps=600), (250, 350, 450))
    train(spec_of(tmp_path, "d", steps=700), (100,))
    assert found_step(longest) == 450
    path = states.directory / "step-00000450" / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert found_step(longest) == 350
    assert str(path) in caplog.text


def test_a_shorter_training_begins_from_a_longer_one(tmp_path: Path) -> None:
    train(spec_of(tmp_path, "a", steps=1000), (300, 400, 500))
    assert found_step(spec_of(tmp_path, "b", steps=400)) == 400
    assert found_step(spec_of(tmp_path, "c", steps=299)) is None


def test_only_states_before_either_rate_falls_fit(tmp_path: Path) -> None:
    train(spec_of(tmp_path, "a", steps=400, lr_decay=0.25), (300, 350, 400))  # constant up to step 300
    assert found_step(spec_of(tmp_path, "b", steps=1000, lr_decay=0.25)) == 300
    train(spec_of(tmp_path, "c", steps=1000, lr_decay=0.25), (600, 700, 750))  # its own falls after 750
    assert found_step(spec_of(tmp_path, "d", steps=900, lr_decay=0.25)) == 600  # falls after 675
    assert found_step(spec_of(tmp_path, "e", steps=500, lr_decay=1.0)) is None  # another setting


DIFFERENT: dict[str, dict[str, Any]] = {
    "seed": {"seed": 7},
    "rate": {"lr": 1e-4},
    "split": {"split": SPLIT.model_copy(update={"digest": "sha256:3"})},
    "recipe": {"recipe": 4},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_in_more_than_its_steps_is_no_sibling(tmp_path: Path, what: str) -> None:
    train(spec_of(tmp_path, "a", **DIFFERENT[what]), (300, 400))
    assert continue_shorter(spec_of(tmp_path, "b", steps=1000)) is None
    assert found_step(spec_of(tmp_path, "c", steps=1000, **DIFFERENT[what])) == 400


def test_where_a_training_runs_does_not_matter(tmp_path: Path) -> None:
    train(spec_of(tmp_path, "a", num_threads=1), (300, 400))
    assert found_step(spec_of(tmp_path, "b", steps=1000, num_threads=2, checkpoint_every=7)) == 400


def test_what_a_state_names_comes_along_or_the_state_does_not_fit(tmp_path: Path) -> None:
    short, long = spec_of(tmp_path, "a", steps=500), spec_of(tmp_path, "b", steps=1000)
    files = {name: short.directory / "work" / "best" / f"step-00000250-{name}.safetensors" for name in ("model", "ema")}
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    averages = [
        short.directory / "snapshots" / f"update-00000200-sigma-0.{width}.safetensors" for width in ("05", "10")
    ]
    averages[0].parent.mkdir()
    for path in averages:
        path.write_text(path.name)
    hashes = {name: sha256_file(path) for name, path in files.items()}
    best = BestValidation(step=250, loss=0.1, raw={}, ema={}, files=hashes)
    train(short, (300, 400), best=best, snapshots=(200,))
    averages[1].rename(tmp_path / "lost")
    assert found_step(long) is None
    (tmp_path / "lost").rename(averages[1])
    files["ema"].write_text("other")
    assert found_step(long) is None
    files["ema"].write_text("ema")
    assert continue_shorter(long) == 400
    for path in [*files.values(), *averages]:
        assert (long.directory / path.relative_to(short.directory)).read_text() == path.read_text()
    (short.directory / "work" / "metrics.jsonl").unlink()
    assert found_step(spec_of(tmp_path, "c", steps=1100)) is None  # of this sibling; b has no pending record


def test_a_training_with_points_of_its_own_is_not_begun_anew(tmp_path: Path) -> None:
    short, long = spec_of(tmp_path, "a"), spec_of(tmp_path, "b", steps=1000)
    train(short, (300, 400))
    own = long.directory / "work" / "metrics.jsonl"
    own.parent.mkdir()
    own.write_text('{"step": 0, "time_ms": 9, "val/loss": 2.0}\n')
    assert continue_shorter(long) is None
    assert own.read_text().count("\n") == 1
    own.unlink()
    assert continue_shorter(long) == 400
    (long.directory / "work" / "checkpoints" / "step-00000400").rename(
        tmp_path / "gone"
    )  # killed before the state came
    assert continue_shorter(long) == 400


def test_a_sibling_that_is_removed_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short, long = spec_of(tmp_path, "a"), spec_of(tmp_path, "b", steps=1000)
    states = train(short, (300, 400))

    def pruned(path: Path, folder: Path) -> None:
        states.directory.rename(tmp_path / "removed")
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("storage.checkpoints._copy_state", pruned)
    assert continue_shorter(long) is None
    assert "was removed while the training began from it" in caplog.text
    assert not list((long.directory / "work" / "checkpoints").iterdir())


def test_what_it_makes_is_what_a_training_of_its_own_makes(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    settings: dict[str, Any] = {"preset": "XS/4/0", "val_every": 4, "checkpoint_every": 4, "log_every": 4}
    settings |= {"select": "best", "ema_snapshots": 3, "lr_decay": 0.4}

    def trained(folder: str, steps: int) -> TrainSpec:
        spec = train_spec(small_config(**settings, steps=steps), *data, tmp_path / folder)
        Pending(stage=spec.stage, inputs={"snapshot": spec.snapshot, "split": spec.split}).save(spec.directory / "work")
        began[folder] = continue_shorter(spec)
        training = Training(assemble(spec), spec)
        training.run(lambda: False)
        return spec

    began: dict[str, int | None] = {}
    trained("stages/short", 10)  # its rate falls after step 6: the state of step 4 is that of a longer training too
    longer, undisturbed = trained("stages/long", 16), trained("alone/long", 16)
    assert began == {"stages/short": None, "stages/long": 4, "alone/long": None}
    assert artifact_files(longer.directory) == artifact_files(undisturbed.directory)
