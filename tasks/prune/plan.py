"""Which stage directories of a working folder are used, and why; the others can be removed.

Used are: what the newest runs made, what was used lately, what a process works on, and everything that any of these was made
from. Only folders that a stage made are looked at; stores, sources, records of runs and MLflow's files are not among them.

The caller can name checkpoints that are kept whatever their age, such as the champion, and others that were given up: they and the
samples drawn from them go although a run that is kept made them, and although a report that is kept describes them.

The weights that a finished training began with (its input `initial`) are not needed for it any more: else every champion of a chain
of warm starts would stay.
"""

import logging
import re
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storage.artifacts import PROVENANCE, SCRATCH
from storage.documents.pending import Pending
from storage.documents.provenance import Provenance
from storage.documents.run_record import RunDocument
from storage.errors import InputError, StorageError
from storage.files import is_abandoned
from storage.locks import is_locked
from storage.refs import Ref
from tasks.run.stage import LOCK

_INITIAL = "initial"
BUSY = "a process works on it"  # why a directory is kept
_KEY = re.compile(r"[0-9a-f]{32}")
_DAY_S = 86400.0
Name = tuple[str, str]  # stage and key: they stay when a working folder is moved
logger = logging.getLogger("prdit.prune")


@dataclass(frozen=True)
class StageDirectory:
    """One directory of a stage.

    Attributes:
        path: of it.
        stage: name of the stage.
        key: its cache key.
        size_bytes: of all files in it.
        last_used: when a run last worked on it, or a file in it last changed, in seconds since 1970.
        finished: whether it holds an artifact.
        removable: whether nothing needs it.
        why: what needs it, or why nothing does.
    """

    path: Path
    stage: str
    key: str
    size_bytes: int
    last_used: float
    finished: bool
    removable: bool
    why: str


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints that age and runs alone do not decide about, by digest, each with why.

    Attributes:
        kept: stay, with all that they were made from.
        given_up: go once they were not used for `days`, with the samples drawn from them.
        days: see there.
    """

    kept: Mapping[str, str] = field(default_factory=dict)
    given_up: Mapping[str, str] = field(default_factory=dict)
    days: float = 0.0


@dataclass
class _Found:
    path: Path
    size_bytes: int
    last_used: float
    record: Provenance | None
    why: str = ""  # what needs it
    given_up: str = ""  # why it is not kept for a run or a report

    def inputs(self) -> list[Ref]:
        if self.record is not None:
            return [ref for role, ref in self.record.inputs.items() if role != _INITIAL]
        with suppress(StorageError):
            return list(Pending.load(self.path / SCRATCH).inputs.values())
        return []


def plan(
    workdir: Path, *, keep_runs: int = 10, keep_days: float = 7.0, checkpoints: Checkpoints | None = None
) -> list[StageDirectory]:
    """Look at every stage directory; what can be removed comes first, then by size.

    Args:
        workdir: the working folder.
        keep_runs: newest recorded runs whose stages are kept.
        keep_days: what was used in this many days is kept.
        checkpoints: that are kept or given up whatever the runs say.

    Raises:
        InputError: there is no such folder.
        DamagedArtifactError, VersionError: the record of one of these runs cannot be read, so that what it needs is unknown.
    """
    if not workdir.is_dir():
        raise InputError(f"There is no working folder at {workdir}. Name the one of your runs: --workdir .prdit/work.")
    found = {(path.parent.name, path.name): _look(path) for path in _directories(workdir)}
    now = time.time()
    _mark(found, checkpoints or Checkpoints(), now)
    for run, names in _recorded(workdir, keep_runs).items():
        for name in names & found.keys():
            if not found[name].given_up:
                found[name].why = found[name].why or f"run {run}"
    for each in found.values():
        if is_busy(each.path):
            each.why = BUSY
        elif not (each.why or each.given_up) and now - each.last_used < keep_days * _DAY_S:
            each.why = f"used in the last {keep_days:g} days"
    _keep_inputs(found)
    rows = [*(_row(name, each) for name, each in found.items()), *_interrupted(workdir)]
    return sorted(rows, key=lambda row: (not row.removable, -row.size_bytes, row.stage, row.key))


def _mark(found: dict[Name, _Found], checkpoints: Checkpoints, now: float) -> None:
    """Note which directories hold checkpoints that are kept or given up, or samples of the latter."""
    for each in found.values():
        if each.record is None:
            continue
        if each.record.digest in checkpoints.kept:
            each.why = checkpoints.kept[each.record.digest]
        elif now - each.last_used >= checkpoints.days * _DAY_S:
            drawn_from = each.record.inputs.get("checkpoint") if each.record.kind == "samples" else None
            digest = drawn_from.digest if drawn_from else each.record.digest
            if digest not in checkpoints.kept:
                each.given_up = checkpoints.given_up.get(digest, "")


def is_busy(directory: Path) -> bool:
    """Whether a process holds a lock in a stage directory: a run of the stage, or a training that lost its parent."""
    return any(is_locked(path) for path in (directory / SCRATCH).glob("*.lock"))


def _directories(workdir: Path) -> Iterator[Path]:
    for stage in sorted(workdir.iterdir()):
        if stage.name != RunDocument.FOLDER and stage.is_dir() and not stage.is_symlink():
            for path in sorted(stage.iterdir()):
                if _KEY.fullmatch(path.name) and not path.is_symlink() and (path / SCRATCH / LOCK).is_file():
                    yield path


def _look(path: Path) -> _Found:
    size, newest = size_and_time(path)
    try:
        record = Provenance.load(path) if (path / PROVENANCE).exists() else None
    except StorageError as error:
        logger.warning("taken for unfinished: %s", error)
        record = None
    return _Found(path, size, newest, record)


def size_and_time(path: Path) -> tuple[int, float]:
    """Bytes of a file or of all files in a folder, and when any of them last changed, in seconds since 1970; zeros of nothing."""
    size, newest = 0, 0.0
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        with suppress(OSError):  # whoever works here has removed it meanwhile
            found = each.lstat()
            size += found.st_size if not stat.S_ISDIR(found.st_mode) else 0
            newest = max(newest, found.st_mtime)
    return size, newest


def size_of(path: Path) -> int:
    """Bytes of a file or of all files in a folder; 0 where there is none."""
    return size_and_time(path)[0]


def _recorded(workdir: Path, count: int) -> dict[str, set[Name]]:
    """Names of the stages that the newest recorded runs used, by the run's name."""
    names: dict[str, set[Name]] = {}
    for path in RunDocument.paths(workdir)[:count]:
        stages = RunDocument.read(path).stages.values()
        places = [Path(place) for stage in stages for place in (stage.ref.uri, stage.directory)]
        names[path.parent.name] = {(place.parent.name, place.name) for place in places}
    return names


def _keep_inputs(found: dict[Name, _Found]) -> None:
    """Keep what anything kept was made from, however far back."""
    open_ = deque(name for name, each in found.items() if each.why)
    while open_:
        stage, key = open_.popleft()
        record = found[stage, key].record
        is_report = record is not None and record.kind == "report"
        for ref in found[stage, key].inputs():
            name = (ref.path.parent.name, ref.path.name)
            if name not in found or found[name].why:
                continue
            if not (found[name].given_up and is_report):  # a report shows its figures without them
                found[name].why = f"input of {stage}/{key[:8]}"
                open_.append(name)


def _row(name: Name, each: _Found) -> StageDirectory:
    finished = each.record is not None
    unused = each.given_up or ("no kept run uses it" if finished else "unfinished, and no kept run uses it")
    return StageDirectory(
        path=each.path,
        stage=name[0],
        key=name[1],
        size_bytes=each.size_bytes,
        last_used=each.last_used,
        finished=finished,
        removable=not each.why,
        why=each.why or unused,
    )


def _interrupted(workdir: Path) -> Iterator[StageDirectory]:
    """What a removal that was killed has left."""
    for path in sorted(workdir.glob("*/.*.tmp")):
        key = path.name[1:].partition(".")[0]
        if path.parent.name != RunDocument.FOLDER and path.is_dir() and _KEY.fullmatch(key) and is_abandoned(path):
            size, newest = size_and_time(path)
            why = "its removal was interrupted"
            yield StageDirectory(path, path.parent.name, key, size, newest, finished=False, removable=True, why=why)
