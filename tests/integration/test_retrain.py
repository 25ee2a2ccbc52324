"""The flow `retrain` on phantoms, with a real MLflow in a file: what it trains, promotes, holds, and what a kill leaves.

The tests of this file build on each other, in order, on one installation.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from prefect.testing.utilities import prefect_test_harness
from typer.testing import CliRunner

import flows.retrain
import flows.retrain_batches
import flows.retrain_challenger
from flows.backup import backup
from flows.cli import app
from storage.artifacts import load_provenance
from storage.errors import ComputationError
from storage.inbox_ledger import Ledger
from storage.locks import locked
from storage.snapshots import newest
from storage.volume_store import VolumeStore
from tasks.drift.gate import DriftVerdict, Finding, HeldError
from tasks.retrain.reference import references
from tests.retraining import Installation, without_waiting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BAD = 1e-6  # a rate at which nothing is learned
LARGE = {"tracking", "mlflow-artifacts"}  # copied apart, with the checkpoints
WILD = 0.03  # one at which everything is lost


class Killed(BaseException):
    """As a kill: nothing is cleaned up by what does not expect it."""


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Iterator[Installation]:
    root = tmp_path_factory.mktemp("retrain")
    patch.chdir(root)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    patch.setattr(flows.retrain_batches, "gate", lambda config: lambda *_: None)
    without_waiting(patch)
    with prefect_test_harness(server_startup_timeout=90):
        yield Installation(root)


def test_an_empty_inbox_is_nothing_new(place: Installation) -> None:
    assert place.run()["state"] == "Nothing new"
    assert not place.store.exists()


def test_one_patient_waits(place: Installation) -> None:
    place.arrive(1)
    found = place.run(lr=BAD)
    assert (found["state"], found["listed"]) == ("Waiting", [1])
    assert "two patients" in found["reason"]


def test_the_first_challenger_becomes_champion(place: Installation) -> None:
    place.arrive(5)
    found = place.run(lr=BAD)
    assert found["state"] == "Promoted", found["reason"]
    assert "no champion yet" in found["reason"]
    champion = place.registry.find("champion")
    assert champion is not None
    assert champion.version == found["decision"]["champion"] == 1
    inputs = load_provenance(champion.checkpoint).inputs
    assert inputs["snapshot"] == newest(VolumeStore.open(place.store))
    assert "initial" not in inputs
    run = MlflowClient(f"sqlite:///{place.work / 'mlflow.db'}").get_run(champion.run_id)
    assert run.data.tags["mlflow.source.name"] == "retrain"
    assert (run.data.tags["prdit.decision"], run.data.tags["prdit.policy"]) == (
        "promoted",
        str(place.root / "policy.yaml"),
    )


def test_every_folder_beside_the_stages_is_in_a_back_up(place: Installation) -> None:
    folders = {path.name for path in place.work.iterdir() if path.is_dir()}
    stages = {path.parents[1].name for path in place.work.glob("*/*/provenance.json")}
    assert folders - stages - LARGE == {"decisions", "reference", "retrain", "runs"}
    site = {"configuration": "tiny", "overrides": {"workdir": str(place.work)}, "store": str(place.store)}
    (place.root / ".prdit").mkdir(exist_ok=True)
    (place.root / ".prdit" / "site.yaml").write_text(json.dumps(site))
    try:
        found = backup(place.root / "backup", place.root / "services").files
    finally:
        (place.root / ".prdit" / "site.yaml").unlink()
    assert {name.split("/")[1] for name in found if name.startswith("work/")} == folders - stages - LARGE


def test_the_same_data_again_runs_nothing(place: Installation) -> None:
    before = newest(VolumeStore.open(place.store))
    found = place.run(lr=BAD)
    assert found["state"] == "Nothing new"
    assert "same" in found["reason"]
    assert newest(VolumeStore.open(place.store)) == before
    assert len(place.decisions()) == 1


def test_a_dry_run_says_what_would_happen(place: Installation) -> None:
    arguments = ["retrain", "--dry-run", "--json"]
    for name, value in place.parameters(lr=BAD).items():
        if name != "overrides":
            arguments += ["--config" if name == "configuration" else f"--{name}", value]
    arguments += ["--set", f"workdir={place.work}"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.stderr
    value = json.loads(shown.stdout.splitlines()[-1])
    assert (value["state"], value["champion"], value["start"]) == ("nothing", 1, "champion")


def test_a_worse_challenger_is_held(place: Installation) -> None:
    place.arrive(1)
    found = place.run(lr=WILD)
    assert found["state"] == "Challenger held", found["reason"]
    decision = found["decision"]
    assert (decision["action"], decision["champion"], decision["challenger"]) == ("held", 1, 2)
    assert decision["figures"]["held_out_loss_challenger"] > decision["figures"]["held_out_loss_champion"]
    aliases = {version.version: version.aliases for version in place.registry.versions()}
    assert aliases == {1: ("champion",), 2: ("challenger",)}
    assert references(place.work).numbers() == [1]


def test_a_challenger_that_comes_to_nothing_is_held_and_not_tried_again(place: Installation) -> None:
    place.arrive(1)
    with pytest.MonkeyPatch.context() as context:

        def no_samples(*_: Any) -> Any:
            raise ComputationError("None of 2 volumes is finite.")

        context.setattr(flows.retrain_challenger, "run_through", no_samples)
        found = place.run(lr=BAD)
        assert place.run(lr=BAD)["state"] == "Nothing new"
    assert (found["state"], found["decision"]) == ("Challenger held", None)
    assert "None of 2 volumes is finite" in found["reason"]
    assert place.rounds.newest().outcome == "failed"  # type: ignore[union-attr]


def test_a_better_challenger_goes_on_from_the_champion_and_is_promoted(place: Installation) -> None:
    place.arrive(1)
    found = place.run(lr=3e-3, steps=40)
    assert found["state"] == "Promoted", found["reason"]
    assert "better than the champion beyond noise" in found["reason"]
    champion = place.registry.find("champion")
    first = place.registry.find("1")
    assert champion is not None
    assert first is not None
    assert champion.version == 3
    inputs = load_provenance(champion.checkpoint).inputs
    assert inputs["initial"].digest == first.checkpoint.digest
    local, local_before = inputs["start"], load_provenance(first.checkpoint).inputs["start"]
    assert load_provenance(local).inputs["initial"].digest == local_before.digest
    assert len(list((place.work / "held-out").glob("*/*.json"))) == 3  # each checkpoint once
    assert references(place.work).numbers() == [1]


def test_a_batch_that_the_gate_holds_is_not_listed_and_nothing_else_happens(
    place: Installation, patch: pytest.MonkeyPatch
) -> None:
    finding = Finding("hu_shift", 200.0, 50.0, "HU are shifted by 200, allowed is 50.")
    held = DriftVerdict((finding,), (), b"\x89PNG picture")
    before = newest(VolumeStore.open(place.store))
    place.arrive(1)
    with pytest.MonkeyPatch.context() as context:

        def holds(store: Any, new: Any, snapshot: Any) -> None:
            raise HeldError(held, tuple(new))

        context.setattr(flows.retrain_batches, "gate", lambda config: holds)
        found = place.run(lr=BAD)
        assert place.run(lr=BAD)["state"] == "Nothing new"  # it is held, not tried again and again
    assert found["state"] == "Held"
    assert "HU are shifted by 200" in found["reason"]
    assert newest(VolumeStore.open(place.store)) == before
    [batch] = [one for one in place.batches() if one.state == "held"]
    assert len(batch.volumes) >= 1
    assert (place.arrivals / "pictures" / f"{batch.number:06d}.png").read_bytes() == b"\x89PNG picture"
    assert place.registry.find("champion").version == 3  # type: ignore[union-attr]


def test_a_released_batch_is_listed_without_the_gate_and_a_killed_retraining_goes_on(
    place: Installation, patch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each step, and started again each time: one training, one version, one decision."""
    [batch] = [one for one in place.batches() if one.state == "held"]
    with closing(Ledger(place.arrivals)) as ledger:
        ledger.release(batch.number)
    before, versions = len(place.decisions()), len(place.registry.versions())
    trained = {path.name for path in (place.work / "train-global").iterdir()}
    kills = [
        (flows.retrain_batches.Ledger, "set_batch", "after"),
        (flows.retrain, "begun", "before"),
        (flows.retrain_challenger, "run_through", "before"),
        (flows.retrain_challenger, "gather", "after"),
        (flows.retrain_challenger, "hold", "before"),
        (flows.retrain_challenger, "hold", "after"),
        (flows.retrain.Rounds, "end", "before"),
        (flows.retrain.Rounds, "end", "after"),
    ]
    hit = []
    for owner, name, when in kills:
        with pytest.MonkeyPatch.context() as context:
            original = getattr(owner, name)

            def killed(*arguments: Any, _of: Any = original, _when: str = when, **more: Any) -> Any:
                if _when == "after":
                    _of(*arguments, **more)
                raise Killed

            context.setattr(owner, name, killed)
            context.setattr(flows.retrain_batches, "gate", lambda config: pytest.fail("the gate was asked"))
            try:
                place.run(lr=WILD)
            except Killed:
                hit.append((name, when))
    found = place.run(lr=WILD)
    assert hit == [(name, when) for _, name, when in kills]
    assert found["state"] == "Nothing new"
    assert place.batches()[batch.number - 1].state == "listed"
    assert len(place.decisions()) == before + 1
    assert len(place.registry.versions()) == versions + 1
    assert len({path.name for path in (place.work / "train-global").iterdir()} - trained) == 1
    last = place.rounds.last()
    assert last is not None
    assert (last.outcome, last.challenger) == ("held", versions + 1)


def test_two_at_once(place: Installation) -> None:
    with locked(place.work / "retrain.lock"):
        found = place.run()
    assert found["state"] == "Waiting"
    assert "Another retraining" in found["reason"]
