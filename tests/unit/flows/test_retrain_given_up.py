"""A retraining that cannot go on is not resumed for ever: it is given up, or trained from scratch, and says so."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flows.retrain
import flows.retrain_challenger
from flows.pipeline import Purpose
from flows.retrain_challenger import Challenge
from flows.retrain_setup import Setup
from storage.artifacts import Ref
from storage.documents.retraining import Retraining
from storage.errors import InputError, MissingArtifactError
from storage.registry import PLACE, ModelVersion, RegistryUnavailableError
from storage.snapshots import find, open_snapshot, redact_snapshots
from storage.volume_store import VolumeStore
from tasks.retrain.judge import Evidence, judge
from tasks.retrain.rounds import Rounds
from tests.factories import make_split, make_store
from tests.unit.tasks.checkpoints import commit_checkpoint


class World:
    """A retraining that is under way, on three volumes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.snapshot = make_store(root / "store", num_volumes=3)
        grid = {"spacing_mm": 8.0, "num_levels": 1, "interpolation": "linear"}
        self.setup = Setup.of("tiny", store="store", policy="eager", overrides={"ingest": grid})
        self.rounds = Rounds(self.setup.workdir)

    def begin(self, initial: str = "") -> Retraining:
        return self.rounds.begin(
            Retraining(
                snapshot=self.snapshot.digest,
                num_volumes=3,
                num_patients=3,
                reason="it was due",
                policy="eager",
                settings=self.setup.settings,
                champion=None,
                initial=initial,
                begun="2027-01-01T00:00:00+00:00",
            )
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return World(tmp_path)


def test_after_a_patient_was_forgotten_it_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def working_on_it(config: Any, *_: Any) -> None:
        open_snapshot(find(VolumeStore.open(Path(config.store)), config.snapshot))

    monkeypatch.setattr(flows.retrain_challenger, "run_through", working_on_it)
    world.begin()
    redact_snapshots(world.root / "store", ["v1"])
    name, reason, decision = flows.retrain._trained(world.setup)
    assert (name, decision) == ("Waiting", None)
    assert "begun at 2027-01-01T00:00:00+00:00 is given up; the next run decides anew" in reason
    assert world.rounds.newest().outcome == "given up"  # type: ignore[union-attr]
    assert world.rounds.under_way(world.setup.settings) is None
    assert "a retraining is given up" in caplog.text


@pytest.mark.parametrize(
    ("error", "outcome"), [(InputError("too few patients"), "given up"), (RegistryUnavailableError("away"), "")]
)
def test_what_cannot_be_used_is_not_resumed_but_what_is_away_is(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str
) -> None:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(flows.retrain_challenger, "run_through", failing)
    world.begin()
    with pytest.raises(type(error), match=str(error)):
        flows.retrain._trained(world.setup)
    assert world.rounds.newest().outcome == outcome  # type: ignore[union-attr]


@pytest.mark.parametrize("gone", [False, True])
def test_where_the_checkpoint_below_the_champions_is_gone_it_is_trained_from_scratch(
    world: World, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    work = world.setup.workdir
    inputs = {"snapshot": world.snapshot, "split": make_split(world.root / "split", world.snapshot, ["v0"], ["v1"])}
    local = commit_checkpoint(work / "train-local" / ("1" * 32), "local", inputs)
    top = commit_checkpoint(work / "train-global" / ("2" * 32), "global", inputs | {"start": local})
    place = {PLACE: f"train-global/{'2' * 32}"}
    version = ModelVersion(1, top, "run", ("champion",), place, "2027-01-01T00:00:00+00:00")
    monkeypatch.setattr(Challenge, "_version_of", lambda self, digest: version)
    seen: list[tuple[dict[str, Ref], int]] = []

    def whole(config: Any, last: str, purpose: Purpose) -> None:
        seen.append((dict(purpose.initial), config.recipe["local"].steps))

    monkeypatch.setattr(flows.retrain_challenger, "run_through", whole)
    if gone:
        (local.path / "ema.safetensors").unlink()
    setup = replace(
        world.setup, policy=world.setup.policy.model_copy(update={"start": "champion", "warm_steps_share": 0.5})
    )
    challenge = Challenge(setup, setup.registry(), world.begin(top.digest), lambda name, work: work())
    initial, note = challenge._initial()
    with pytest.raises(IndexError):  # nothing is judged here
        challenge.run()
    steps = setup.config.recipe["local"].steps
    if gone:
        assert (initial, seen) == ({}, [({}, steps)])
        assert "trained from scratch" in note
        assert "`start: scratch`" in note
    else:
        assert initial == {"local": local, "global": top}
        assert seen == [(initial, -(-steps // 2))]
        assert note == ""


def test_where_the_champions_files_are_gone_the_challenger_is_held(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: Any) -> Ref:
        raise MissingArtifactError("nowhere")

    there: Any = SimpleNamespace(ref=world.snapshot)
    run: Any = SimpleNamespace(outcomes={"split": there}, unmet=[])
    monkeypatch.setattr(flows.retrain_challenger, "checkpoint_of", gone)
    monkeypatch.setattr(flows.retrain_challenger.Report, "load", lambda path: None)
    monkeypatch.setattr(flows.retrain_challenger, "frozen_reference", lambda *_: (1, None))
    monkeypatch.setattr(flows.retrain_challenger, "gather", lambda own, champion, *_: Evidence(champion=champion))
    champion = ModelVersion(7, world.snapshot, "run", ("champion",))
    challenge = Challenge(world.setup, world.setup.registry(), world.begin(), lambda name, work: work())
    evidence = challenge._evidence(
        run, ModelVersion(8, world.snapshot, "run"), world.snapshot, world.snapshot, champion
    )
    judgement = judge(world.setup.policy, evidence)
    assert (evidence.champion, judgement.promote) == (7, False)
    assert judgement.reason.startswith(
        "Held. Nothing can be compared with the champion, version 7, whose files are gone"
    )
    assert "nothing can be compared with the champion: nowhere" in caplog.text
