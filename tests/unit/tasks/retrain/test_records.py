"""Records of retrainings, the facts that are taken of them, and the weights that a warm start begins with."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.artifacts import Ref
from storage.documents.retraining import Retraining
from storage.errors import InputError
from storage.registry import SNAPSHOT, ModelVersion
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.retrain.facts import facts_of, newest_snapshot
from tasks.retrain.initial import initial_checkpoints
from tasks.retrain.rounds import Rounds
from tests.factories import list_volumes, make_split, make_store
from tests.unit.tasks.checkpoints import commit_checkpoint

NOW = datetime(2027, 3, 1, tzinfo=UTC)
DIGEST = "sha256:" + "1" * 64


def retraining(snapshot: str = DIGEST, **changes: object) -> Retraining:
    values = {
        "snapshot": snapshot,
        "num_volumes": 3,
        "num_patients": 3,
        "reason": "new scans",
        "policy": "default",
        "settings": "a",
        "champion": None,
        "initial": "",
        "begun": "2027-02-28T00:00:00+00:00",
    }
    return Retraining.model_validate(values | changes)


def version(tags: dict[str, str], checkpoint: Ref | None = None) -> ModelVersion:
    ref = checkpoint or Ref(kind="checkpoint", uri="/none", digest=DIGEST)
    return ModelVersion(1, ref, "run", ("champion",), tags, "2027-02-01T00:00:00+00:00")


def test_what_was_begun_goes_on_until_it_has_ended(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path)
    assert rounds.under_way("a") is None
    assert rounds.last() is None
    begun = rounds.begin(retraining())
    assert Rounds(tmp_path).under_way("a") == begun
    assert rounds.last() is None
    rounds.end("held", 7)
    assert rounds.under_way("a") is None
    last = rounds.last()
    assert last is not None
    assert (last.outcome, last.challenger, last.begun) == ("held", 7, begun.begun)
    rounds.end("promoted", 8)  # of nothing
    assert rounds.last() == last


def test_with_other_settings_it_is_given_up_and_counts_as_no_training(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path)
    rounds.begin(retraining())
    rounds.end("promoted", 1)
    rounds.begin(retraining("sha256:" + "2" * 64))
    assert rounds.under_way("b") is None
    assert rounds.newest().outcome == "given up"  # type: ignore[union-attr]
    assert rounds.last().challenger == 1  # type: ignore[union-attr]
    assert rounds.under_way("a") is None  # it stays so


def test_facts_count_what_the_last_training_did_not_have(tmp_path: Path) -> None:
    first = make_store(tmp_path / "store", num_volumes=3)
    store = VolumeStore.open(tmp_path / "store")
    rounds = Rounds(tmp_path)
    before = facts_of(first, rounds, None, NOW)
    assert (before.new_volumes, before.new_patients, before.last) == (3, 3, None)
    rounds.begin(retraining(first.digest))
    rounds.end("held", 1)
    source = make_store(tmp_path / "more", num_volumes=5)
    for name in ("v3", "v4"):
        store.write(VolumeStore.open(source.path).read_level(name, 0), volume_id=name, attributes={})
    now = list_volumes(store, {"v3": "p0", "v4": "p9"})
    facts = facts_of(now, rounds, None, NOW)
    assert (facts.num_volumes, facts.new_volumes, facts.new_patients) == (5, 2, 1)
    assert facts.last is not None
    assert (facts.last.snapshot, facts.last.num_volumes) == (first.digest, 3)
    assert facts_of(None, rounds, None, NOW).num_volumes == 0
    assert facts_of(now, rounds, version({"prdit.refused": "forgotten"}), NOW).refused == "forgotten"


def test_a_champion_that_was_promoted_by_hand_is_the_last_training(tmp_path: Path) -> None:
    first = make_store(tmp_path / "store", num_volumes=3)
    facts = facts_of(first, Rounds(tmp_path), version({SNAPSHOT: first.digest}), NOW)
    assert facts.last is not None
    assert facts.last.snapshot == first.digest
    assert facts.last.began == datetime(2027, 2, 1, tzinfo=UTC)
    assert facts.new_volumes == 0
    unknown = facts_of(first, Rounds(tmp_path), version({SNAPSHOT: DIGEST}), NOW)
    assert unknown.new_volumes == 3  # its snapshot is of another store


def test_no_store_has_no_snapshot(tmp_path: Path) -> None:
    assert newest_snapshot(tmp_path / "none", IngestConfig()) is None


def test_every_training_of_the_recipe_begins_with_its_own_checkpoint(tmp_path: Path) -> None:
    snapshot = make_store(tmp_path / "store")
    inputs = {"snapshot": snapshot, "split": make_split(tmp_path / "split", snapshot, ["v0"], ["v1"])}
    local = commit_checkpoint(tmp_path / "local", "local", inputs)
    champion = commit_checkpoint(tmp_path / "global", "global", inputs | {"start": local})
    starts = {"local": None, "global": "local"}
    assert initial_checkpoints(champion, starts) == {"local": local, "global": champion}
    assert initial_checkpoints(local, {"local": None}) == {"local": local}
    (local.path / "ema.safetensors").unlink()
    with pytest.raises(InputError, match=r"training 'local' is needed(.|\n)*start: scratch"):
        initial_checkpoints(champion, starts)
    with pytest.raises(InputError, match="records no input 'start'"):
        initial_checkpoints(local, starts)
