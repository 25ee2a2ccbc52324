"""What an installation need not keep any more, by policy: stages, samples, records. Nothing here touches a store.

Which checkpoints stay is decided by the registered model's aliases and the recorded decisions. While MLflow does not answer, every
checkpoint that a decision names stays.
"""

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.documents.promotion import Decision
from storage.documents.run_record import RunDocument
from storage.encoded import encoded_folders
from storage.files import naming_path
from storage.registry import FETCHED, ModelVersion
from tasks.maintain.config import RetentionConfig
from tasks.prune.plan import Checkpoints, StageDirectory, plan, size_and_time

_DAY_S = 86400.0
_LONGEST_RUN_DAYS = 30.0  # the time limit of the flow `prdit`: a younger run without a record may be under way
logger = logging.getLogger("prdit.retention")


@dataclass(frozen=True)
class Old:
    """A file or folder beside the stages that is not kept any more.

    Attributes:
        what: kind of it, for people.
        path: of it.
        size_bytes: of all files in it.
    """

    what: str
    path: Path
    size_bytes: int


def checkpoints(
    decisions: Sequence[Decision], versions: Sequence[ModelVersion] | None, config: RetentionConfig
) -> Checkpoints:
    """Which checkpoints are kept whatever their age, and which were given up.

    Args:
        decisions: all, oldest first.
        versions: of the registered model; None while MLflow does not answer.
        config: what is kept.
    """
    kept: dict[str, str] = {}
    for version in versions or ():
        if version.aliases:
            kept[version.checkpoint.digest] = f"version {version.version}, {' and '.join(version.aliases)}"
    newest: dict[str, Decision] = {}  # one champion may have been made champion often
    for decision in reversed(decisions):
        if decision.action in ("promoted", "rolled back"):
            newest.setdefault(decision.checkpoint, decision)
    for decision in list(newest.values())[: config.keep_champions]:
        kept.setdefault(decision.checkpoint, f"champion of {decision.created[:10]}, for a rollback")
    if versions is None:
        for decision in decisions:
            kept.setdefault(decision.checkpoint, "MLflow does not answer, so its aliases are unknown")
    given_up = {
        decision.checkpoint: f"version {decision.challenger} was {decision.action} on {decision.created[:10]}"
        for decision in decisions
        if decision.action == "held"
        and decision.checkpoint not in kept
        and _age_days(decision.created) >= config.challenger_days
    }
    return Checkpoints(kept, given_up, config.challenger_days)


def stages(workdir: Path, config: RetentionConfig, which: Checkpoints) -> list[StageDirectory]:
    """The stage directories of a working folder that are not kept; empty where there is no folder.

    Raises: StorageError: a run's record is damaged, so that what it needs is unknown.
    """
    if not workdir.is_dir():
        return []
    rows = plan(workdir, keep_runs=config.keep_runs, keep_days=config.keep_days, checkpoints=which)
    return [row for row in rows if row.removable]


def old_records(workdir: Path, errors: Path, config: RetentionConfig, which: Checkpoints) -> list[Old]:
    """Records of runs beyond the newest, tracebacks of faults, and models fetched from MLflow, each unused for long.

    Args:
        workdir: working folder.
        errors: folder of the tracebacks.
        config: what is kept.
        which: checkpoints that stay.
    """
    stay = {digest.removeprefix("sha256:") for digest in which.kept}
    runs = [path.parent for path in RunDocument.paths(workdir)]
    began = sorted(path for path in (workdir / RunDocument.FOLDER).glob("*") if path.is_dir() and path not in runs)
    models = sorted(path for path in (workdir / FETCHED).glob("[!.]*") if path.is_dir() and path.name not in stay)
    places = [("record of a run", path, config.log_days) for path in runs[config.keep_runs :]]
    places += [("record of a run", path, max(config.log_days, _LONGEST_RUN_DAYS)) for path in began]
    places += [("report of a fault", path, config.log_days) for path in sorted(errors.glob("*")) if path.is_file()]
    places += [("model fetched from MLflow", path, config.keep_days) for path in models]
    return _unused(places)


def old_encoded(store: Path, config: RetentionConfig) -> list[Old]:
    """Encoded volumes beside a store that no training has begun with for long: each snapshot has its own."""
    days = max(config.keep_days, _LONGEST_RUN_DAYS)
    return _unused(("encoded volumes", path, days) for path in encoded_folders(store))


def _unused(places: Iterable[tuple[str, Path, float]]) -> list[Old]:
    """Those, of what and where, that nothing has changed for so many days."""
    found, now = [], time.time()
    for what, path, days in places:
        size, newest = size_and_time(path)
        if now - newest >= days * _DAY_S:
            found.append(Old(what, path, size))
    return found


def remove_old(found: Iterable[Old]) -> list[Old]:
    """Remove them; returns those that were there.

    Raises: UnwritableError: the folder is read-only, or not ours.
    """
    removed = []
    for old in found:
        with naming_path(old.path), suppress(FileNotFoundError):
            if old.path.is_dir() and not old.path.is_symlink():
                shutil.rmtree(old.path)
            else:
                old.path.unlink()
            removed.append(old)
    return removed


def _age_days(created: str) -> float:
    """Days since a recorded UTC time."""
    then = datetime.fromisoformat(created)
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds() / _DAY_S
