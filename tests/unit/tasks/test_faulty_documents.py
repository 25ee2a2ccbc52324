"""A faulty document, wherever it is read: one sentence with its path; a cached stage is made again, a resume passes over it."""

import errno
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.console import find_ref
from flows.demo import _record
from storage.artifacts import Ref, committed_ref, input_ref, load_provenance, verify_artifact
from storage.checkpoints import ResumeStates
from storage.documents.average_snapshots import AverageSnapshots
from storage.documents.checkpoint import Checkpoint
from storage.documents.document import Document
from storage.documents.provenance import Provenance
from storage.documents.report import Report
from storage.documents.run_record import RunDocument
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.documents.training_state import GROUPS, TrainingState
from storage.documents.verdicts import IngestReport, SourceVerdicts
from storage.errors import StorageError, UnreadableError
from storage.snapshots import newest, snapshot_files
from storage.tombstones import tombstones
from storage.verification import check_volume
from storage.volume_store import VolumeStore
from tasks.average.config import AverageConfig
from tasks.average.run import average_stage
from tasks.convert.exporting import export_checkpoint
from tasks.evaluate.lineage import store_facts, trace
from tasks.evaluate.run import check as check_evaluation
from tasks.evaluate.stage import EVALUATE
from tasks.ingest.stage import INGEST
from tasks.maintain.verify import verify_store
from tasks.model.checkpoint import load_info
from tasks.run.fanout import Pool
from tasks.run.launchers.launcher import LauncherError
from tasks.run.launchers.slurm import _end_older
from tasks.run.recording import log_checkpoint
from tasks.run.stage import RunContext, Stage, StageRun, run_stage
from tasks.sample.batch import AtOnce
from tasks.sample.config import SampleConfig
from tasks.sample.draw import Drawing
from tasks.sample.run import _at_once
from tasks.sample.run import check as check_sampling
from tasks.sample.stage import SAMPLE
from tasks.split.config import SplitConfig
from tasks.split.run import ledger_agrees, split
from tasks.split.stage import SPLIT
from tasks.train.averages import FOLDER
from tasks.train.check import check_training
from tasks.train.gates import GatesConfig, check_gates
from tasks.train.spec import Outcome
from tests.factories import local_config, make_split, make_store
from tests.logs import said
from tests.unit.storage.documents.examples import EXAMPLES, FAULTS
from tests.unit.tasks.checkpoints import commit_pair
from tests.unit.tasks.test_evaluate import make_samples

Refs = dict[str, Ref]
WINDOW = {"lower_hu": 5, "upper_hu": 0, "model_lower": -1, "model_upper": 1, "mapping": "window"}  # empty


def silent(done: int, total: int) -> None:
    """No progress."""


def context(refs: Refs) -> RunContext:
    return RunContext(workdir=refs["snapshot"].path.parent / "work")


# where each document is read: its place by the artifact it is in, and the call that reads it
PLACES: dict[str, tuple[str, str, Callable[[Refs], Any]]] = {
    "load_provenance": ("checkpoint", Provenance.NAME, lambda refs: load_provenance(refs["checkpoint"])),
    "verify_artifact": ("checkpoint", Provenance.NAME, lambda refs: verify_artifact(refs["checkpoint"])),
    "input_ref": ("samples", Provenance.NAME, lambda refs: input_ref(refs["samples"], "checkpoint")),
    "find_ref": ("checkpoint", Provenance.NAME, lambda refs: find_ref(refs["checkpoint"].uri)),
    "load_info": ("checkpoint", Checkpoint.NAME, lambda refs: load_info(refs["checkpoint"])),
    "sampling": ("checkpoint", Checkpoint.NAME, lambda refs: check_sampling(refs["checkpoint"], SampleConfig())),
    "starting": (
        "checkpoint",
        Checkpoint.NAME,
        lambda refs: check_training(
            refs["snapshot"], refs["split"], refs["checkpoint"], local_config().model_copy(update={"start": "local"})
        ),
    ),
    "gates": (
        "checkpoint",
        Checkpoint.NAME,
        lambda refs: check_gates(GatesConfig(), {"local": refs["checkpoint"]}, {"local": None}),
    ),
    "tracking": ("checkpoint", Checkpoint.NAME, lambda refs: log_checkpoint(None, "", refs["checkpoint"])),
    "export": (
        "checkpoint",
        Checkpoint.NAME,
        lambda refs: export_checkpoint(refs["checkpoint"], refs["snapshot"].path.parent / "x.pt", silent),
    ),
    "average": (
        "checkpoint",
        f"{FOLDER}/{AverageSnapshots.NAME}",
        lambda refs: average_stage(refs["checkpoint"], AverageConfig(), context(refs), silent),
    ),
    "training": (
        "split",
        Split.NAME,
        lambda refs: check_training(refs["snapshot"], refs["split"], None, local_config()),
    ),
    "evaluation of a split": (
        "split",
        Split.NAME,
        lambda refs: check_evaluation(refs["samples"], refs["snapshot"], refs["split"]),
    ),
    "facts": ("split", Split.NAME, lambda refs: store_facts(refs["snapshot"], refs["split"])),
    "figures of a split": ("split", Split.NAME, lambda refs: SPLIT.points(refs["split"].path)),
    "evaluation of samples": (
        "samples",
        Samples.NAME,
        lambda refs: check_evaluation(refs["samples"], refs["snapshot"], refs["split"]),
    ),
    "figures of samples": ("samples", Samples.NAME, lambda refs: SAMPLE.points(refs["samples"].path)),
    "figures of a report": ("report", Report.NAME, lambda refs: EVALUATE.points(refs["report"].path)),
    "figures of an ingest": ("verdicts", IngestReport.NAME, lambda refs: INGEST.points(refs["verdicts"].path)),
    "exclusions": (
        "snapshot",
        "exclusions/source.json",
        lambda refs: VolumeStore.open(refs["snapshot"].path).exclusions(),
    ),
}


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> Refs:
    root = tmp_path_factory.mktemp("faulty")
    store = make_store(root / "store", num_volumes=4)
    EXAMPLES["source verdicts"].write(store.path / "exclusions" / "source.json")
    divided = make_split(root / "split", store, ["v0", "v1", "v2"], ["v3"])
    checkpoint = commit_pair(root, store, divided)[1]
    EXAMPLES["averages"].save(checkpoint.path / FOLDER)
    EXAMPLES["report"].save(root / "report")
    EXAMPLES["ingest report"].save(root / "verdicts")
    others = {name: Ref(kind="report", uri=str(root / name), digest="sha256:0") for name in ("report", "verdicts")}
    samples = make_samples(root / "samples", checkpoint, 2)
    return {"snapshot": store, "split": divided, "checkpoint": checkpoint, "samples": samples, **others}


@contextmanager
def faulty(path: Path, fault: str) -> Iterator[None]:
    """The file with a fault, for the time of the block."""
    whole = path.read_bytes()
    content = FAULTS[fault][0](whole)
    assert content != whole
    path.unlink() if content is None else path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("place", "fault"),
    [(place, fault) for place in PLACES for fault in FAULTS if (place, fault) != ("exclusions", "missing")],
)
def test_reading_a_faulty_document(refs: Refs, place: str, fault: str) -> None:
    artifact, name, read = PLACES[place]
    path = refs[artifact].path / name
    with faulty(path, fault), pytest.raises(StorageError) as raised:
        read(refs)
    message = str(raised.value)
    assert (str(path.parent) if place == "find_ref" else str(path)) in message
    assert message.isprintable()


@pytest.mark.parametrize("command", ["sample", "evaluate", "ema", "export-checkpoint", "train"])
@pytest.mark.parametrize("fault", ["object", "list", "truncated", "not utf-8", "newer version"])
def test_commands_refuse_an_artifact_whose_record_is_faulty(
    refs: Refs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = refs["samples" if command == "evaluate" else "checkpoint"]
    rest = {"export-checkpoint": [str(tmp_path / "out.pt")], "train": ["--config", "tiny"]}.get(command, [])
    given = ["global", "--start", artifact.uri] if command == "train" else [artifact.uri]
    path = artifact.path / Provenance.NAME
    with faulty(path, fault):
        shown = CliRunner().invoke(app, [command, *given, *rest])
    assert shown.exit_code == 1, shown.output
    lines = shown.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "missing"])
def test_a_cached_stage_whose_record_is_faulty_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    stage = Stage("split", "split", recipe=1)

    def body(run: StageRun) -> None:
        (run.directory / "result").write_text("whole")

    def run() -> tuple[Ref, bool]:
        outcome = run_stage(stage, inputs={}, config={}, context=RunContext(workdir=tmp_path), body=body)
        return outcome.ref, outcome.cached

    ref, _ = run()
    path = ref.path / Provenance.NAME
    path.write_bytes(FAULTS[fault][0](path.read_bytes()) or b"")
    assert run() == (ref, False)
    (warning,) = said(caplog, logging.WARNING)
    assert "made again" in warning
    assert str(path) in warning
    assert warning.isprintable()
    assert run() == (ref, True)


@pytest.mark.parametrize("name", [Provenance.NAME, "result"])
def test_a_cached_stage_that_cannot_be_read_now_is_kept(tmp_path: Path, name: str) -> None:
    stage, made = Stage("split", "split", recipe=1), list[int]()

    def body(run: StageRun) -> None:
        made.append(1)
        (run.directory / "result").write_text("whole")

    def run() -> Ref:
        return run_stage(stage, inputs={}, config={}, context=RunContext(workdir=tmp_path), body=body).ref

    ref = run()
    path = ref.path / name
    with unreadable(path), pytest.raises(UnreadableError) as raised:
        run()
    assert str(raised.value) == f"{path} cannot be read (Permission denied): check its permissions and the disk."
    assert (run(), made) == (ref, [1])


def test_a_store_that_cannot_be_read_now_is_not_called_damaged(tmp_path: Path) -> None:
    store = VolumeStore.open(make_store(tmp_path / "store").path)
    root, shard = store.path / "zarr.json", next(store.path.glob("volumes/v0-*/0/c/0/0/0"))
    with unreadable(root):
        with pytest.raises(UnreadableError, match=re.escape(f"{root} cannot be read (Permission denied)")):
            VolumeStore.open(store.path)
        found = verify_store(store.path, num_workers=1)[0]
    assert [(one.kind, "cannot be read (Permission denied)" in one.message) for one in found] == [("root", True)]
    with unreadable(shard):
        finding = check_volume(store, "v0")
    assert finding is not None
    assert finding.message == f"{shard} cannot be read (Permission denied): check its permissions and the disk."


@pytest.mark.parametrize(
    ("folder", "read"),
    [
        ("commits", lambda path: VolumeStore.open(path).volume_ids()),
        ("exclusions", lambda path: VolumeStore.open(path).exclusions()),
        ("snapshots", lambda path: snapshot_files(path)),
        ("history", lambda path: newest(VolumeStore.open(path))),
        ("tombstones", lambda path: tombstones(path)),
    ],
)
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, folder: str, read: Callable[[Path], Any]
) -> None:
    """No volume is called lost for it, no snapshot begun anew, and no forgotten patient let in."""
    store = make_store(tmp_path / "store").path
    shutil.rmtree(store / folder, ignore_errors=True)
    (store / folder).write_text("as a folder that may not be read, this cannot be listed")
    with pytest.raises(UnreadableError, match=re.escape(f"{store / folder} cannot be read (Not a directory)")):
        read(store)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Access to the file is denied, to root as well, for the time of the block."""
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        yield


@pytest.mark.parametrize("fault", FAULTS)
def test_a_resume_passes_over_a_faulty_state(tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str) -> None:
    states, example = ResumeStates(tmp_path / "states"), EXAMPLES["training state"]
    assert isinstance(example, TrainingState)
    for step in (10, 20):
        position = example.position.model_copy(update={"step": step})
        states.save(position, {group: {"w": np.full(2, step, np.float32)} for group in GROUPS})
    found = states.newest_good()
    assert found is not None
    assert found[0].step == 20
    newest = tmp_path / "states" / "step-00000020" / TrainingState.NAME
    with faulty(newest, fault):
        found = states.newest_good()
    assert found is not None
    position, groups = found
    assert position == example.position.model_copy(update={"step": 10})
    assert {group: arrays["w"].tolist() for group, arrays in groups.items()} == {
        group: [10.0, 10.0] for group in GROUPS
    }
    (message,) = said(caplog)
    assert str(newest) in message
    assert message.isprintable()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_split_is_made_again_and_a_faulty_run_record_is_none(tmp_path: Path, fault: str) -> None:
    store = make_store(tmp_path / "store")
    split(store, SplitConfig(), tmp_path)
    assert ledger_agrees(store, tmp_path, SplitConfig())
    with faulty(tmp_path / Split.NAME, fault):
        assert not ledger_agrees(store, tmp_path, SplitConfig())
    run = EXAMPLES["run"]
    assert isinstance(run, RunDocument)
    run = run.model_copy(update={"prefect_flow_run_id": "a"})
    run.save_run(tmp_path / "work" / "runs" / "1")
    assert _record(tmp_path / "work", "a") == run
    assert _record(tmp_path / "work", "b") is None
    with faulty(tmp_path / "work" / "runs" / RunDocument.LATEST, fault):
        assert _record(tmp_path / "work", "a") is None


def test_the_chain_of_a_report_says_where_a_record_is_faulty(refs: Refs) -> None:
    with faulty(refs["checkpoint"].path / Provenance.NAME, "object"):
        nodes = trace(refs["samples"], refs["split"], refs["snapshot"])
    assert [node.ref.kind for node in nodes] == ["samples", "checkpoint", "split", "snapshot"]
    assert nodes[1].note == "Its record cannot be read (DamagedArtifactError)."
    assert committed_ref(refs["checkpoint"].path) == refs["checkpoint"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"process": {"name": "unheard-of"}}, "unheard-of"),
        ({"view": {"size": 7, "edge": 256, "centre": None}}, "does not divide"),
        ({"intensity": WINDOW}, "lower end"),
    ],
)
def test_a_checkpoint_of_what_this_prdit_does_not_have(
    refs: Refs, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    values = Checkpoint.load(refs["checkpoint"].path).model_dump() | changes
    document: Document = Checkpoint.model_validate(values)
    document.save(tmp_path)
    with pytest.raises(ValueError, match=expected) as raised:
        load_info(Ref(kind="checkpoint", uri=str(tmp_path), digest="sha256:0"))
    assert str(tmp_path / Checkpoint.NAME) in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("content", [b"[]", b'{"format_ver', b'{"job": [1]}', b"\xff"])
def test_a_faulty_record_of_a_scratch_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    for name in ("slurm-job", "outcome-3.json", "batch.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LauncherError, match=re.escape(f"{tmp_path / 'slurm-job'} is damaged")):
        _end_older(tmp_path)
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path / 'outcome-3.json'} is damaged")):
        Outcome.find(tmp_path, 3)
    checkpoint = Ref(kind="checkpoint", uri=str(tmp_path), digest="sha256:0")
    with Pool(None) as pool:
        drawing = Drawing(checkpoint, SampleConfig(), tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tasks.sample.run.at_once", lambda drawing, most: AtOnce(2, 1))
            assert [_at_once(pool, drawing, tmp_path, 4) for _ in range(2)] == [AtOnce(2, 1)] * 2
    (warning,) = said(caplog, logging.WARNING)  # the second time it is read
    assert warning == f"{tmp_path / 'batch.json'} is damaged; what can be drawn at once is measured again"


def test_source_verdicts_keep_no_path() -> None:
    verdicts = EXAMPLES["source verdicts"]
    assert isinstance(verdicts, SourceVerdicts)
    report = EXAMPLES["ingest report"]
    assert isinstance(report, IngestReport)
    for document in (verdicts, report):
        text = document.without_paths(bytes(32)).to_bytes().decode()
        assert "notes.txt" not in text
        assert "/data/store" not in text
        assert "not_dicom" in text
