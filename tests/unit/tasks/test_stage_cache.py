"""The stage wrapper: a hit is verified, damage means computing again, keys see what matters."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import PROVENANCE, Ref, input_ref, load_provenance, stage_key, verify_artifact
from storage.errors import DamagedArtifactError, MissingArtifactError
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, code_version, git_commit, run_stage

STAGE = Stage("split", "split", recipe=1)
SOURCE = Ref(kind="snapshot", uri="/nowhere", digest="sha256:1")


class Counter:
    """A body that writes one file and counts how often it ran."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, run: StageRun) -> None:
        self.calls += 1
        (run.directory / "work" / "scratch").write_text(str(self.calls))
        (run.directory / "data").mkdir(exist_ok=True)
        (run.directory / "data" / "result.bin").write_bytes(b"result")


def run(tmp_path: Path, body: Any, stage: Stage = STAGE, **changes: Any) -> StageOutcome:
    arguments: dict[str, Any] = {"inputs": {"snapshot": SOURCE}, "config": {"seed": 1}} | changes
    return run_stage(stage, context=RunContext(workdir=tmp_path), body=body, **arguments)


def test_second_run_is_a_verified_hit(tmp_path: Path) -> None:
    body = Counter()
    first, second = run(tmp_path, body), run(tmp_path, body)
    assert (first.cached, second.cached, body.calls) == (False, True, 1)
    assert first.ref == second.ref
    assert input_ref(first.ref, "snapshot") == SOURCE
    assert set(load_provenance(first.ref).files) == {"data/result.bin"}  # scratch is no part of it


@pytest.mark.parametrize("damage", ["flip", "delete", "record"])
def test_a_damaged_artifact_is_made_again_and_said_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = Counter()
    ref = run(tmp_path, body).ref
    path = ref.path / "data" / "result.bin"
    if damage == "flip":
        path.write_bytes(b"resulu")
    elif damage == "delete":
        path.unlink()
    else:
        record = json.loads((ref.path / PROVENANCE).read_text())
        record["files"]["data/result.bin"] = "0" * 64
        (ref.path / PROVENANCE).write_text(json.dumps(record))
    with pytest.raises((DamagedArtifactError, MissingArtifactError)):
        verify_artifact(ref)
    again = run(tmp_path, body)
    assert (again.cached, body.calls, again.ref) == (False, 2, ref)
    assert "made again" in caplog.text
    verify_artifact(again.ref)


def test_an_unfinished_stage_keeps_its_scratch(tmp_path: Path) -> None:
    def dies(run: StageRun) -> None:
        (run.directory / "work" / "scratch").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, dies)
    seen = []

    def goes_on(run: StageRun) -> None:
        seen.append((run.directory / "work" / "scratch").read_text())
        (run.directory / "out").write_text("whole")

    assert not run(tmp_path, goes_on).cached
    assert seen == ["half"]


def test_still_valid_can_refuse_a_hit(tmp_path: Path) -> None:
    body = Counter()
    run(tmp_path, body)
    assert not run(tmp_path, body, still_valid=lambda directory: False).cached
    assert body.calls == 2


def test_key_changes_with_everything_that_changes_the_result() -> None:
    config: dict[str, Any] = {"lr": 1.0, "nested": {"a": 1}}
    base = stage_key("train-local", 1, {"snapshot": SOURCE}, config)
    moved = Ref(kind="snapshot", uri="/elsewhere", digest=SOURCE.digest)
    assert stage_key("train-local", 1, {"snapshot": moved}, config) == base  # the place is not the content
    others = [
        stage_key("train-global", 1, {"snapshot": SOURCE}, config),
        stage_key("train-local", 2, {"snapshot": SOURCE}, config),
        stage_key("train-local", 1, {"snapshot": Ref(kind="snapshot", uri="/nowhere", digest="sha256:2")}, config),
        stage_key("train-local", 1, {"snapshot": SOURCE}, {"lr": 2.0, "nested": {"a": 1}}),
        stage_key("train-local", 1, {"snapshot": SOURCE}, {"lr": 1.0, "nested": {"a": 2}}),
    ]
    assert len({base, *others}) == 6


def test_a_reference_with_another_digest_is_refused(tmp_path: Path) -> None:
    ref = run(tmp_path, Counter()).ref
    with pytest.raises(DamagedArtifactError, match="digest"):
        verify_artifact(ref.model_copy(update={"digest": "sha256:" + "0" * 64}))
    with pytest.raises(MissingArtifactError, match=r"No provenance record at .*nothing/provenance\.json"):
        verify_artifact(ref.model_copy(update={"uri": str(tmp_path / "nothing")}))


def test_the_code_version_names_the_commit_of_the_checkout(repository: Path) -> None:
    if not (repository / ".git").exists():
        pytest.skip("not a checkout: there is no commit to name")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    assert git_commit() == head.stdout.strip()
    assert code_version().partition("+")[2].startswith(head.stdout[:7])
