"""Retention: the champion and what it was made from stay, held challengers go, and nothing that a run works on."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.documents.promotion import Action, Decision
from storage.encoded import EncodedVolumes, encoded_folder
from storage.errors import StorageError
from storage.inbox_ledger import Ledger
from storage.registry import ModelVersion
from tasks.maintain.config import RetentionConfig
from tasks.maintain.disk import NoRoomError, check_room
from tasks.maintain.retention import checkpoints, old_records, stages
from tasks.maintain.run import Installation, prune
from tasks.patients.made import made_in
from tasks.prune.plan import Checkpoints
from tasks.run.stage import StageOutcome
from tests.unit.storage.test_encoded import VALUES, origin
from tests.unit.tasks.aged_work import Work, age

CONFIG = RetentionConfig(keep_runs=1, keep_days=7, challenger_days=20, keep_champions=1, log_days=30)


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")


def decision(action: Action, made: StageOutcome, days: float, version: int = 1) -> Decision:
    return Decision(
        action=action,
        reason="figures",
        champion=1,
        champion_before=None,
        challenger=version,
        checkpoint=made.ref.digest,
        by="policy default",
        created=ago(days),
    )


def version(number: int, made: StageOutcome, *aliases: str) -> ModelVersion:
    return ModelVersion(number, made.ref, "run", aliases)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "work")


def directories(*outcomes: StageOutcome) -> set[Path]:
    return {Path(outcome.directory) for outcome in outcomes}


def test_the_champion_stays_with_all_it_was_made_from(work: Work) -> None:
    split = work.stage("split", 1, 100)
    local = work.stage("train-local", 1, 100, split=split.ref)
    champion = work.stage("train-global", 1, 100, start=local.ref)
    other = work.stage("train-global", 2, 100)
    which = checkpoints([], [version(3, champion, "champion"), version(4, other)], CONFIG)
    assert {row.path for row in stages(work.root, CONFIG, which)} == directories(other)


def test_a_held_challenger_goes_with_its_samples_though_the_newest_run_made_it(work: Work) -> None:
    split = work.stage("split", 1, 25)
    challenger = work.stage("train-global", 2, 25, split=split.ref)
    samples = work.stage("sample", 2, 25, checkpoint=challenger.ref)
    report = work.stage("evaluate", 2, 25, samples=samples.ref, split=split.ref)
    work.record("20261101T000000.000000Z", split=split, train=challenger, sample=samples, evaluate=report)
    held = decision("held", challenger, 25, version=2)

    def gone(*decisions: Decision, versions: list[ModelVersion] | None) -> set[Path]:
        return {row.path for row in stages(work.root, CONFIG, checkpoints(list(decisions), versions, CONFIG))}

    assert gone(held, versions=[version(2, challenger)]) == directories(challenger, samples)
    assert gone(held, versions=[version(2, challenger, "challenger")]) == set()
    assert gone(held, versions=None) == set()  # MLflow does not say what has an alias
    assert gone(decision("held", challenger, 10), versions=[]) == set()
    assert gone(held, decision("promoted", challenger, 1), versions=[]) == set()  # promoted by hand later


def test_a_given_up_checkpoint_stays_while_it_is_used_or_a_later_one_starts_from_it(work: Work) -> None:
    used = work.stage("train-global", 1, 3)
    below = work.stage("train-global", 2, 50)
    above = work.stage("train-refiner", 1, 50, start=below.ref)
    held = [decision("held", used, 50), decision("held", below, 50)]
    which = checkpoints(held, [version(9, above, "champion")], CONFIG)
    assert stages(work.root, CONFIG, which) == []


def test_the_champions_before_stay_as_many_as_are_kept(work: Work) -> None:
    first, second, third = (work.stage("train-global", seed, 100) for seed in (1, 2, 3))
    decisions = [decision("promoted", first, 90), decision("promoted", second, 80), decision("promoted", third, 70)]
    current = [version(3, third, "champion")]

    def gone(keep_champions: int) -> set[Path]:
        config = CONFIG.model_copy(update={"keep_champions": keep_champions})
        return {row.path for row in stages(work.root, config, checkpoints(decisions, current, config))}

    assert gone(1) == directories(first, second)
    assert gone(2) == directories(first)
    assert gone(3) == set()
    decisions += [decision("rolled back", second, 60), decision("promoted", third, 50)]  # a champion counts once
    assert gone(2) == directories(first)
    assert gone(3) == set()


def test_a_chain_of_warm_starts_does_not_keep_every_champion(work: Work) -> None:
    first = work.stage("train-global", 1, 100)
    second = work.stage("train-global", 2, 100, initial=first.ref)
    place = installation(work, [version(2, second, "champion")])
    assert [(each.what, each.count) for each in prune(place, CONFIG, [])] == [("stage train-global", 1)]
    assert not Path(first.directory).exists()
    assert Path(second.directory).exists()
    (before,) = [one for one in made_in(work.root) if one.digest == first.ref.digest]
    assert (before.kind, before.uri) == ("checkpoint", "")  # what the second descends from is still known


def test_batches_that_ended_lose_their_folder_of_links(work: Work, tmp_path: Path) -> None:
    place = installation(work, [])
    ledger = Ledger(place.arrivals)
    for number, state in enumerate(("listed", "held"), start=1):
        ledger.database.run(
            "INSERT INTO batches (state, created, reason, volumes, released, series) VALUES (?, ?, '', '[]', 0, 1)",
            (state, ago(1)),
        )
        ledger.database.run("INSERT INTO batch_files VALUES (?, 'i', 'f', ?, 1, 1, 'sha')", (number, str(number)))
        ledger.batch_folder(number).mkdir(parents=True)
    assert [(each.what, each.count) for each in prune(place, CONFIG, [])] == [("folder of a finished batch", 1)]
    assert [path.name for path in (place.arrivals / "batches").iterdir()] == ["000002"]
    assert prune(place, CONFIG, []) == []


def test_records_of_runs_and_faults_go_when_they_are_old(work: Work, tmp_path: Path) -> None:
    for name, days in (
        ("20260101T000000.000000Z", 90),
        ("20260201T000000.000000Z", 60),
        ("20260301T000000.000000Z", 10),
    ):
        work.record(name)
        age(work.root / "runs" / name, days)
    errors = tmp_path / "errors"
    errors.mkdir()
    for name, days in (("old.txt", 60), ("new.txt", 1)):
        (errors / name).write_text("traceback")
        age(errors / name, days)
    names = {old.path.name for old in old_records(work.root, errors, CONFIG, Checkpoints())}
    assert names == {"20260101T000000.000000Z", "20260201T000000.000000Z", "old.txt"}
    kept = CONFIG.model_copy(update={"keep_runs": 2})
    assert {old.path.name for old in old_records(work.root, errors, kept, Checkpoints())} == {
        "20260101T000000.000000Z",
        "old.txt",
    }


def test_a_run_that_may_be_under_way_keeps_its_folder(work: Work, tmp_path: Path) -> None:
    for name, days in (("20260401T000000.000000Z", 31), ("20260402T000000.000000Z", 2)):
        folder = work.root / "runs" / name
        folder.mkdir(parents=True)
        age(folder, days)
    none = CONFIG.model_copy(update={"log_days": 0})
    names = [old.path.name for old in old_records(work.root, tmp_path / "errors", none, Checkpoints())]
    assert names == ["20260401T000000.000000Z"]


def test_models_fetched_from_mlflow_go_unless_they_are_kept(work: Work, tmp_path: Path) -> None:
    for digest in ("aa", "bb"):
        folder = work.root / "models" / digest
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(10))
        age(folder, 60)
    found = old_records(work.root, tmp_path / "errors", CONFIG, Checkpoints(kept={"sha256:aa": "champion"}))
    assert [(old.path.name, old.size_bytes) for old in found] == [("bb", 10)]


def test_encoded_volumes_that_no_training_uses_go(work: Work) -> None:
    place = installation(work, [])
    folder = encoded_folder(place.store, work.root)
    old, used = (EncodedVolumes(folder, origin(encoder="sha256:" + digit * 64)) for digit in "12")
    for kept, days in ((old, 31), (used, 29)):
        kept.save("v0", VALUES)
        age(kept.folder, days)
    (row,) = prune(place, CONFIG, [])
    assert (row.what, row.count, old.folder.exists(), used.folder.exists()) == ("encoded volumes", 1, False, True)
    age(used.folder, 100)
    EncodedVolumes(folder, origin(encoder="sha256:" + "2" * 64))  # a training begins
    assert prune(place, CONFIG, []) == []


def test_a_stage_that_a_process_works_on_stays(work: Work) -> None:
    from storage.artifacts import SCRATCH
    from storage.locks import locked
    from tasks.run.stage import LOCK

    half = work.unfinished("train-global", 1, 100)
    place = installation(work, [])
    with locked(half / SCRATCH / LOCK):
        age(half, 100)
        assert prune(place, CONFIG, []) == []
    age(half, 100)
    assert [each.what for each in prune(place, CONFIG, [])] == ["stage train-global"]


def test_a_damaged_record_of_a_run_removes_nothing_and_says_so(work: Work) -> None:
    made = work.stage("split", 1, 100)
    work.record("20261101T000000.000000Z").write_text("{")
    notes: list[str] = []
    assert prune(installation(work, []), CONFIG, notes) == []
    assert Path(made.directory).exists()
    assert "record.json is damaged" in notes[0]


def test_too_little_disk_is_refused_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 6e9})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    check_room(tmp_path / "not yet there", min_free_gb=5)
    with pytest.raises(
        NoRoomError, match=r"6\.0 GB are free; 7 GB stay free \(retention\.min_free_gb\)\. Nothing was st"
    ):
        check_room(tmp_path, min_free_gb=7)
    assert issubclass(NoRoomError, StorageError)


def installation(work: Work, versions: list[ModelVersion] | None) -> Installation:
    work.root.mkdir(exist_ok=True)
    beside = work.root.parent
    return Installation(
        beside / "store", work.root, beside / "services", beside / "arrivals", beside / "errors", versions
    )
