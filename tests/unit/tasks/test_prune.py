"""prdit prune: what is kept and why, what goes, and that a kill in the middle leaves no half artifact."""

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flows.installation
from flows.cli import app
from storage.artifacts import Ref, committed_ref
from storage.documents.promotion import Decision
from storage.errors import DamagedArtifactError
from storage.numbered import Numbered
from storage.registry import ModelVersion
from tasks.prune.plan import StageDirectory, plan
from tasks.prune.remove import remove, remove_all
from tasks.run.stage import StageOutcome
from tests.unit.tasks.aged_work import DAY_S, Work, age


def kept(rows: list[StageDirectory]) -> dict[str, str]:
    return {f"{row.stage}/{row.key}": row.why for row in rows if not row.removable}


def gone(rows: list[StageDirectory]) -> dict[str, str]:
    return {f"{row.stage}/{row.key}": row.why for row in rows if row.removable}


def place(outcome: StageOutcome | Path) -> str:
    path = outcome if isinstance(outcome, Path) else Path(outcome.directory)
    return f"{path.parent.name}/{path.name}"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "work")


def test_what_the_newest_runs_refer_to_is_kept_with_all_it_was_made_from(work: Work) -> None:
    a = work.stage("split", 1, 100)
    b = work.stage("train-local", 1, 100, split=a.ref)
    c = work.stage("sample", 1, 100, checkpoint=b.ref)
    store = Ref(kind="snapshot", uri="/data/store", digest="sha256:2")
    ingest = work.stage("ingest", 1, 100).model_copy(update={"ref": store})  # what it returns is the store
    old = work.stage("split", 2, 100)
    work.record("20260101T000000.000000Z", split=old)
    work.record("20260201T000000.000000Z", ingest=ingest, sample=c)
    short = Path(c.directory).name[:8]
    expected = {
        place(c): "run 20260201T000000.000000Z",
        place(ingest): "run 20260201T000000.000000Z",
        place(b): f"input of sample/{short}",
        place(a): f"input of train-local/{Path(b.directory).name[:8]}",
    }
    rows = plan(work.root, keep_runs=1)
    assert kept(rows) == expected
    assert gone(rows) == {place(old): "no kept run uses it"}
    assert rows[0].size_bytes >= 1000
    assert 99.9 < (time.time() - rows[0].last_used) / DAY_S < 100.1
    assert kept(plan(work.root, keep_runs=2)) == expected | {place(old): "run 20260101T000000.000000Z"}
    work.root = work.root.rename(work.root.with_name("moved"))
    assert kept(plan(work.root, keep_runs=1)) == expected  # records name the old place, and still hold


def test_what_was_used_lately_is_kept_with_its_inputs(work: Work) -> None:
    old = work.stage("train-local", 1, 30)
    young = work.stage("sample", 1, 6.9, checkpoint=old.ref)
    unused = work.stage("sample", 2, 7.1, checkpoint=old.ref)
    half, stopped = work.unfinished("train-global", 1, 8), work.unfinished("train-global", 2, 1)
    rows = plan(work.root)
    assert kept(rows) == {
        place(young): "used in the last 7 days",
        place(old): f"input of sample/{Path(young.directory).name[:8]}",
        place(stopped): "used in the last 7 days",
    }
    assert gone(rows) == {place(unused): "no kept run uses it", place(half): "unfinished, and no kept run uses it"}
    assert not next(row for row in rows if row.path == half).finished
    assert work.stage("sample", 2, 0, checkpoint=old.ref).cached  # a hit is a use
    assert place(unused) in kept(plan(work.root))
    assert place(young) in gone(plan(work.root, keep_days=6.8))


HOLD = """
    import sys, time
    from pathlib import Path
    from storage.locks import locked
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(3600)
"""


@pytest.fixture
def holder() -> Iterator[Any]:
    """Start a process that holds a lock."""
    children: list[subprocess.Popen[bytes]] = []

    def hold(path: Path) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLD), str(path)], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        return child

    yield hold
    for child in children:
        if child.poll() is None:
            child.kill()
            child.communicate()


@pytest.mark.parametrize("lock", ["stage.lock", "trainer.lock"])
def test_what_a_process_works_on_is_kept_with_what_it_reads(work: Work, holder: Any, lock: str) -> None:
    local = work.stage("train-local", 1, 30)
    busy = work.unfinished("train-global", 1, 30, start=local.ref)
    child = holder(busy / "work" / lock)
    age(busy, 30)
    row = next(row for row in plan(work.root) if row.path == busy)
    assert kept(plan(work.root)) == {
        place(busy): "a process works on it",
        place(local): f"input of train-global/{busy.name[:8]}",
    }
    assert not remove(row)
    assert (busy / "half").exists()
    child.kill()
    child.communicate()
    assert set(gone(plan(work.root))) == {place(busy), place(local)}


def test_other_folders_are_not_looked_at(work: Work) -> None:
    old = work.stage("split", 1, 30)
    key = "0" * 32
    others = [
        work.root / "runs" / key / "work" / "stage.lock",
        work.root / "mlflow-artifacts" / key / "artifacts" / "provenance.json",
        work.root / "store" / "volumes" / key / "zarr.json",
        work.root / "split" / "notes" / "mine.txt",
        work.root / "split" / ".mine.tmp" / "file",
        work.root / "mlflow.db",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    rows = plan(work.root, keep_runs=0, keep_days=0)
    assert [row.path for row in rows] == [Path(old.directory)]
    remove_all(rows, lambda done, total: None)
    assert all(path.exists() for path in others)
    assert not Path(old.directory).exists()


def test_a_stage_that_was_used_since_the_plan_stays(work: Work) -> None:
    old = work.stage("split", 1, 30)
    (row,) = plan(work.root)
    assert work.stage("split", 1, 0).cached
    seen: list[tuple[int, int]] = []
    assert remove_all([row], lambda done, total: seen.append((done, total))) == []
    assert committed_ref(Path(old.directory)) == old.ref
    assert seen == [(0, 1), (1, 1)]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tasks.prune import remove as module
    from tasks.prune.plan import plan
    step = sys.argv[2]
    def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
    if step == "record":
        module.fsync_directory = kill
    else:
        def partly(path):
            (path / "result").unlink()
            kill()
        module.shutil.rmtree = partly
    module.remove(plan(Path(sys.argv[1]))[0])
"""


@pytest.mark.parametrize("step", ["record", "files"])
def test_a_removal_that_is_killed_leaves_no_artifact(work: Work, step: str) -> None:
    old = work.stage("split", 1, 30)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(work.root), step], check=False)
    assert done.returncode == -9
    directory = Path(old.directory)
    assert not directory.exists() if step == "files" else committed_ref(directory) is None
    rows = plan(work.root, keep_days=0)
    assert [row.why for row in rows] == [
        "its removal was interrupted" if step == "files" else "unfinished, and no kept run uses it"
    ]
    assert {row.key for row in rows} == {directory.name}
    assert not work.stage("split", 1, 0).cached  # a run in between makes it again
    assert remove_all(rows, lambda done, total: None) == (rows if step == "files" else [])
    assert committed_ref(directory) == old.ref
    assert len(list(directory.parent.iterdir())) == 1


def test_an_unreadable_record_stops_it_unless_it_is_an_old_one(work: Work) -> None:
    old = work.stage("split", 1, 30)
    first = work.record("20260101T000000.000000Z", split=old)
    first.write_text("{}")
    with pytest.raises(DamagedArtifactError, match=str(first)):
        plan(work.root)
    work.record("20260201T000000.000000Z", split=old)
    assert set(kept(plan(work.root, keep_runs=1))) == {place(old)}


def tree(root: Path) -> dict[str, tuple[bytes, float]]:
    return {str(p): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime) for p in sorted(root.rglob("*"))}


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["prune", *arguments])


def test_the_command_shows_first_and_removes_when_told(work: Work) -> None:
    run = work.stage("split", 1, 30)
    old = work.stage("train-local", 1, 30, split=run.ref)
    work.record("20260101T000000.000000Z", split=run)
    before = tree(work.root)
    shown = call("--workdir", str(work.root))
    assert (shown.exit_code, tree(work.root)) == (0, before)
    line = next(line for line in shown.stdout.splitlines() if "train-local" in line)
    key = Path(old.directory).name
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "remove",
        "train-local",
        key[:8],
        "30.0",
        "0.000",
        "no kept run uses it",
    ]
    assert "1 of 2 stages" in shown.stdout
    assert "nothing was changed" in shown.stdout

    done = call("--workdir", str(work.root), "--yes", "--json")
    value = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 0
    rows = {row["key"]: row for row in value["stages"]}
    assert (rows[key]["removed"], rows[key]["finished"], rows[key]["why"]) == (True, True, "no kept run uses it")
    assert not rows[Path(run.directory).name]["removable"]
    assert value["removed_bytes"] == value["removable_bytes"] == rows[key]["size_bytes"] >= 1000
    assert not Path(old.directory).exists()
    assert committed_ref(Path(run.directory)) == run.ref
    assert "0 of 1 stages" in call("--workdir", str(work.root)).stdout


@pytest.mark.parametrize("answers", [True, False])
def test_the_command_keeps_the_champion_and_what_it_was_made_from(
    work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answers: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = work.stage("train-local", 1, 100)
    champion = work.stage("train-global", 1, 100, start=local.ref)
    other = work.stage("train-global", 2, 100)
    if answers:
        version = ModelVersion(1, champion.ref, "run", ("champion",))
        monkeypatch.setattr(flows.installation, "mlflow_address", lambda: "http://127.0.0.1:1")
        monkeypatch.setattr(flows.installation, "versions", lambda uri, place: [version] if uri else None)
    else:  # what was decided is known without it
        Numbered(work.root / "decisions", Decision).update(
            lambda _: Decision(
                action="promoted",
                reason="figures",
                champion=1,
                champion_before=None,
                challenger=1,
                checkpoint=champion.ref.digest,
                by="policy default",
                created="2026-01-01T00:00:00+00:00",
            )
        )
    done = call("--workdir", str(work.root), "--yes", "--keep-runs", "0", "--json")
    assert done.exit_code == 0, done.output
    assert [Path(one.directory).exists() for one in (local, champion, other)] == [True, True, False]


def test_the_command_without_a_working_folder(tmp_path: Path) -> None:
    shown = call("--workdir", str(tmp_path / "none"))
    assert shown.exit_code == 1
    assert f"There is no working folder at {tmp_path / 'none'}" in shown.output.replace("\n", "")
