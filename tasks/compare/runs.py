"""Which run a name on the command line means, and what is known of it: its report, its samples, the chain that made them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.artifacts import Ref, committed_ref, input_ref, load_provenance, verify_artifact
from storage.documents.provenance import Provenance
from storage.documents.report import Report
from storage.documents.run_record import RunDocument
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.errors import InputError, StorageError
from tasks.evaluate.lineage import Node, trace

LATEST = "latest"
_STAGE = "evaluate"
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")
_NUM_NAMED = 5  # newest runs that a message names


@dataclass(frozen=True)
class Found:
    """A report, and the run that made it or found it.

    Attributes:
        name: of the run's folder, or of the report's (its key); no path, and `find` takes it.
        ref: the report.
        record: of the run; None where a report was named that no recorded run of its working folder has.
    """

    name: str
    ref: Ref
    record: RunDocument | None


@dataclass(frozen=True)
class Run:
    """One of the runs that are compared.

    Attributes:
        label: A, B, …
        name: as in `Found`.
        ref, report, provenance: its report.
        samples_ref, samples: the generated volumes.
        snapshot, split_ref, split: the real volumes.
        nodes: the chain from the samples back to the snapshot.
        mlflow_uri, mlflow_experiment_id, mlflow_run_id: where it is in MLflow; empty where it is not known.
    """

    label: str
    name: str
    ref: Ref
    report: Report
    provenance: Provenance
    samples_ref: Ref
    samples: Samples
    snapshot: Ref
    split_ref: Ref
    split: Split
    nodes: list[Node]
    mlflow_uri: str
    mlflow_experiment_id: str
    mlflow_run_id: str


def find(text: str, workdir: Path) -> Found:
    """The report that a name means.

    Args:
        text: `latest`; name or folder of a run; folder, key or reference of a report; id of a run in MLflow, of the pipeline or of
            its stage evaluate.
        workdir: working folder, where names and ids are looked up.
    Raises:
        InputError: it means nothing here, an artifact of another kind, or a run without a report.
        StorageError: a record cannot be read.
    """
    runs = workdir / RunDocument.FOLDER
    if text == LATEST:
        return _of_record(_newest(runs) or LATEST, RunDocument.latest(runs))
    if text.lstrip().startswith("{"):
        return _of_report(_reference(text), workdir)
    for folder in (Path(text), runs / text):
        if (folder / RunDocument.NAME).is_file():
            return _of_record(folder.resolve().name, RunDocument.load(folder))
    for folder in (Path(text), workdir / _STAGE / text):
        if folder.is_dir() and (ref := committed_ref(folder)):
            return _of_report(ref, workdir)
    if _MLFLOW_ID.fullmatch(text) and (found := _by_mlflow_id(text, workdir)):
        return found
    known = ", ".join(path.name for path in sorted(runs.glob("*Z"), reverse=True)[:_NUM_NAMED])
    there = (
        f"The newest runs in {workdir}: {known}." if known else f"There are no runs in {workdir}; name it: --workdir."
    )
    raise InputError(
        f"{text!r} is no run: expected `latest`, the name or folder of a run, the folder of a report, or the id of a run in "
        f"MLflow. {there}"
    )


def load(found: Sequence[Found], default_uri: str) -> list[Run]:
    """Read what the runs left; their reports are verified by hash.

    Args:
        found: the runs, the first one is what the others are compared with.
        default_uri: MLflow's address for a report that no recorded run has.
    Raises:
        InputError: there are fewer than two, or two are the same report.
        StorageError: an artifact is missing or damaged.
    """
    if len(found) < 2:
        raise InputError("A comparison needs two runs or more; the first is the one that the others are compared with.")
    names: dict[str, str] = {}
    for each in found:
        if each.ref.digest in names:
            raise InputError(
                f"{names[each.ref.digest]} and {each.name} have the same report ({each.ref.digest[:19]}…): there is nothing to "
                "compare. Their settings make the same figures."
            )
        names[each.ref.digest] = each.name
    return [_load(label_of(place), each, default_uri) for place, each in enumerate(found)]


def label_of(place: int) -> str:
    """A, B, … Z, A1, B1, …"""
    return chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "")


def _load(label: str, found: Found, default_uri: str) -> Run:
    verify_artifact(found.ref)
    provenance = load_provenance(found.ref)
    samples, snapshot, split = (input_ref(found.ref, role) for role in ("samples", "snapshot", "split"))
    record = found.record
    return Run(
        label=label,
        name=found.name,
        ref=found.ref,
        report=Report.load(found.ref.path),
        provenance=provenance,
        samples_ref=samples,
        samples=Samples.load(samples.path),
        snapshot=snapshot,
        split_ref=split,
        split=Split.load(split.path),
        nodes=trace(samples, split, snapshot),
        mlflow_uri=record.mlflow_uri if record else default_uri,
        mlflow_experiment_id=record.mlflow_experiment_id if record else "",
        mlflow_run_id=(record.mlflow_run_id if record else provenance.mlflow_run_id) or "",
    )


def _of_record(name: str, record: RunDocument) -> Found:
    if _STAGE not in record.stages:
        ended = (
            f"it ended with {record.error.rstrip('.')}"
            if record.error
            else f"it ended after {', '.join(record.stages) or 'nothing'}"
        )
        raise InputError(f"Run {name} has no report: {ended}. Run it through evaluate: prdit run.")
    return Found(name, record.stages[_STAGE].ref, record)


def _of_report(ref: Ref, workdir: Path) -> Found:
    if ref.kind != "report":
        raise InputError(
            f"compare needs runs or reports, got a {ref.kind} at {ref.uri}. Evaluate it first: prdit evaluate makes a report of "
            "samples."
        )
    for name, record in _records(workdir):
        if _STAGE in record.stages and record.stages[_STAGE].ref.digest == ref.digest:
            return Found(name, ref, record)
    return Found(ref.path.name, ref, None)


def _by_mlflow_id(run_id: str, workdir: Path) -> Found | None:
    for name, record in _records(workdir):
        stage = record.stages.get(_STAGE)
        if run_id == record.mlflow_run_id or (stage and run_id == stage.mlflow_run_id):
            return _of_record(name, record)
    for folder in sorted((workdir / _STAGE).glob("*")):
        if (ref := _readable(folder)) and load_provenance(ref).mlflow_run_id == run_id:
            return _of_report(ref, workdir)
    return None


def _readable(folder: Path) -> Ref | None:
    try:
        return committed_ref(folder)
    except StorageError:
        return None  # a damaged one that nobody asked for


def _records(workdir: Path) -> Iterator[tuple[str, RunDocument]]:
    """Names and records of the runs of a working folder, the newest first; those of other versions are passed over."""
    for path in RunDocument.paths(workdir):
        try:
            yield path.parent.name, RunDocument.read(path)
        except StorageError:
            continue


def _newest(runs: Path) -> str:
    """Name of the run that ended last, whose record `latest.json` repeats."""
    latest = RunDocument.latest(runs)
    return next((name for name, record in _records(runs.parent) if record == latest), "")


def _reference(text: str) -> Ref:
    try:
        return Ref.model_validate_json(text)
    except ValueError as error:
        raise InputError(f'{text!r} is not a reference {{"kind", "uri", "digest"}}: {error}') from error
