"""Back-ups of an installation: what cannot be computed again and is small.

    databases/    of the Prefect and the MLflow server (consistent copies while they run), or dumps of PostgreSQL
    settings/     site.yaml, the configuration and policy it names as files, the secret of the patient keys
    inbox/        the ledger of what arrived
    work/         decisions, frozen reference and losses on it, retrainings, records of runs and of removed checkpoints
    store/        the roles of the patients, tombstones, identity of the patient key; not of a store in a bucket

Volumes, checkpoints and artifacts are large and never change once they are there: docs/operations.md says how they are copied. The
login of the servers is not in a back-up.
"""

import logging
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from flows.databases import Database, DatabaseError, copy_sqlite, databases, migrate, schema, without_password
from flows.installation import site_config
from flows.named_files import SITE_FILE, is_file_name
from flows.server_settings import server_settings
from flows.services import running_processes
from flows.site import load_site
from storage.bucket_path import BucketPath
from storage.documents.backup import BackupDocument, BackupFile
from storage.documents.patient_key_id import PatientKeyId
from storage.errors import ConfigError, DamagedArtifactError
from storage.files import (
    fsync_directory,
    fsync_tree,
    naming_path,
    remove_leftovers,
    sha256_file,
    temporary_path,
)
from storage.inbox_database import NAME as LEDGER
from storage.places import as_folder, as_place
from storage.tombstones import FOLDER as TOMBSTONES

BACKUPS = Path(".prdit") / "backups"
REPLACED = Path(".prdit") / "replaced"
_STORE_PARTS = (PatientKeyId.NAME, "roles", TOMBSTONES)
_WORK_PARTS = ("decisions", "held-out", "reference", "retrain", "runs")
_LINEAGE = "lineage"  # in the working folder, of checkpoints that are gone: what was recorded after a back-up stays
logger = logging.getLogger("prdit.services")


# ---- back up -----------------------------------------------------------------------------------------------------------


def backup(folder: Path, state_dir: Path) -> BackupDocument:
    """Back up the installation of this folder; the services may run.

    Args:
        folder: a new folder, readable by its owner only; it appears when everything is in it.
        state_dir: of the services.
    Raises:
        ConfigError: there is something at `folder`, it lies in store, working folder or inbox, or the site's settings cannot be
            used.
        DatabaseError: a database cannot be copied.
        UnwritableError: no space, say.
    """
    folder = as_folder(folder, "the back-up")
    if folder.is_symlink() or folder.exists():
        raise ConfigError(f"{folder} is there already. Name a new folder: a back-up is never written over another one.")
    _check_outside(folder)
    pair = databases(server_settings(), state_dir.resolve())
    states = {database.name: schema(database) for database in pair}
    with naming_path(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)  # half a back-up has the secret of the patient keys, too
        place = temporary_path(folder)
        place.mkdir(mode=0o700)
        try:
            files: dict[str, BackupFile] = {}
            for database in pair:
                if states[database.name][0] != "empty":
                    files |= _copy_database(database, place)
            for source, name, group in _records():
                files |= _copy(source, place, name, BackupFile(sha256="", target=str(source), group=group))
            document = BackupDocument(
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                prdit=version("prdit"),
                databases="sqlite" if pair[0].file else "postgresql",
                revisions={name: revision for name, (_, revision) in states.items()},
                files=files,
            )
            document.save(place)
            fsync_tree(place)
            place.rename(folder)
            fsync_directory(folder.parent)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    return document


def _copy_database(database: Database, place: Path) -> dict[str, BackupFile]:
    (place / "databases").mkdir(exist_ok=True)
    if database.file is None:
        name, target = f"databases/{database.name}.dump", ""
        _postgres(database, ["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={place / name}"])
    else:
        name, target = f"databases/{database.name}.db", _relative(database.file)
        try:
            copy_sqlite(database.file, place / name)
        except sqlite3.Error as error:
            raise DatabaseError(
                f"The database of {database.label} ({database.file}) cannot be copied: {error}."
            ) from error
    return {name: BackupFile(sha256=sha256_file(place / name), target=target, group="databases")}


def _check_outside(folder: Path) -> None:
    """Refuse a back-up in a folder that others copy, or scans are taken from. Raises: ConfigError."""
    site = load_site()
    config = site_config(site)
    for what, place in (("store", config.store), ("working folder", config.workdir), ("inbox", site.inbox.folder)):
        if folder.resolve().is_relative_to(as_place(place).resolve()):
            raise ConfigError(
                f"{folder} lies in the {what} ({place}). A back-up holds the secret of the patient keys: name a folder of its own, "
                "such as .prdit/backups/2026-11-29."
            )


def _records() -> Iterator[tuple[Path, str, str]]:
    """Every record to copy: where it is, its name in the back-up, its group."""
    site = load_site()
    config = site_config(site)
    store, workdir = as_place(config.store), Path(config.workdir)
    yield SITE_FILE, "settings/site.yaml", "settings"
    for what, name in (("configuration", site.configuration), ("policy", site.policy)):
        if is_file_name(name):
            yield Path(name), f"settings/{what}/{Path(name).name}", "settings"  # both may be called the same
    yield Path(_relative(config.ingest.key_file(store))), "settings/patient-key", "settings"
    yield Path(site.inbox.arrivals) / LEDGER, f"inbox/{LEDGER}", "inbox"
    for part in _WORK_PARTS:
        yield from ((path, f"work/{path.relative_to(workdir)}", "work") for path in _files(workdir / part))
    yield from ((path, f"work/{path.relative_to(workdir)}", "store") for path in _files(workdir / _LINEAGE))
    for part in () if isinstance(store, BucketPath) else _STORE_PARTS:
        yield from ((path, f"store/{path.relative_to(store)}", "store") for path in _files(store / part))


def left_out() -> str:
    """A sentence on what this site's back-ups have not, though they have it of other sites; empty where there is none."""
    store = as_place(site_config(load_site()).store)
    if not isinstance(store, BucketPath):
        return ""
    return (
        f"The store is in a bucket ({store}), so its roles, tombstones and identity of the patient key are not in the back-up: "
        "copy the whole prefix, or have the bucket keep versions (docs/operations.md)."
    )


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))


def _copy(source: Path, place: Path, name: str, file: BackupFile) -> dict[str, BackupFile]:
    target = place / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.suffix == ".sqlite":
            copy_sqlite(source, target)
        else:
            _copy_file(source, target)
    except FileNotFoundError:  # not made yet, or removed since it was listed
        return {}
    except sqlite3.Error as error:
        if not source.exists():
            target.unlink(missing_ok=True)
            return {}
        raise DamagedArtifactError(f"{source} cannot be copied: {error}. Nothing was backed up.") from error
    return {name: file.model_copy(update={"sha256": sha256_file(target)})}


def _copy_file(source: str | Path, target: str | Path) -> None:
    """Copy bytes and times of a file; opened with the mode of the source, since network shares refuse to change it later."""
    with Path(source).open("rb") as original:
        status = os.fstat(original.fileno())
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, status.st_mode & 0o777)
        with os.fdopen(copy, "wb") as out:
            shutil.copyfileobj(original, out)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


# ---- restore -----------------------------------------------------------------------------------------------------------


def restore(folder: Path, state_dir: Path) -> tuple[BackupDocument, Path | None]:
    """Put an installation of this folder back to a back-up.

    What is replaced is moved to `.prdit/replaced/<time>`, so that this can be undone by hand. To the records of the
    store and of removed checkpoints it only adds.

    Args:
        folder: what `backup` wrote.
        state_dir: of the services; they must not run.
    Returns: what was restored, and where the replaced files are; None when there were none.
    Raises:
        ConfigError: the services run, or the database on PostgreSQL is in use.
        DamagedArtifactError: the back-up is not whole; nothing was changed.
        DatabaseError: PostgreSQL does not take a dump; no file was changed.
    """
    _check_stopped(state_dir)
    document = BackupDocument.load(folder)
    damaged = [
        name
        for name, file in document.files.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != file.sha256
    ]
    if damaged:
        raise DamagedArtifactError(
            f"The back-up {folder} is not whole. Missing or damaged: {', '.join(damaged[:5])}. Nothing was changed. "
            "Take another one."
        )
    by_name: dict[str, Database] = {
        database.name: database for database in databases(server_settings(), state_dir.resolve())
    }
    if (by_name["prefect"].file is None) != (document.databases == "postgresql"):
        kinds = {"sqlite": "SQLite files (no PRDIT_DATABASE)", "postgresql": "PostgreSQL (PRDIT_DATABASE)"}
        raise ConfigError(
            f"The back-up {folder} is of {kinds[document.databases]}, and the settings here are for the other kind. "
            "Nothing was changed."
        )
    if document.databases == "postgresql":
        for name in document.revisions:
            _check_empty(by_name[name])
    _load_dumps(document, folder, by_name)
    aside = REPLACED / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    moved = _move_aside(document, aside)
    for name, file in document.files.items():
        if file.target and (file.group != "store" or not Path(file.target).exists()):
            with naming_path(Path(file.target)):
                Path(file.target).parent.mkdir(parents=True, exist_ok=True)
                _copy_file(folder / name, Path(file.target))
    return document, aside if moved else None


def _check_stopped(state_dir: Path) -> None:
    if running_processes(state_dir):
        raise ConfigError("The services run. End them first: prdit down")


def _check_empty(database: Database) -> None:
    from flows.databases import prepare

    prepare(database)
    if schema(database)[0] != "empty":
        raise ConfigError(
            f"The database {database.place} has tables already, and a dump is not written over them. Nothing was changed. Rename "
            f"it first, as its owner:\n    ALTER DATABASE {database.url.database} RENAME TO {database.url.database}_before;"
        )


def _load_dumps(document: BackupDocument, folder: Path, by_name: dict[str, Database]) -> None:
    """Load the dumps of PostgreSQL, each whole or not at all. Raises: DatabaseError: it says which were loaded before."""
    loaded: list[Database] = []
    for name in (name for name, file in document.files.items() if not file.target):
        database = by_name["prefect" if "prefect" in name else "mlflow"]
        options = ["--no-owner", "--no-privileges", "--single-transaction", f"--dbname={database.url.database}"]
        try:
            _postgres(database, ["pg_restore", *options, str(folder / name)])
        except DatabaseError as error:
            filled = ", ".join(one.place for one in loaded)
            also = (
                f" but that {filled} has the back-up's tables: rename or drop it before the next try" if filled else ""
            )
            raise DatabaseError(f"{error}\nNothing was changed{also}.") from error
        loaded.append(database)


def _move_aside(document: BackupDocument, aside: Path) -> bool:
    """Move away what the back-up replaces: single files, and the whole folders of records of the work folder."""
    places: dict[Path, None] = {}
    for name, file in document.files.items():
        if not file.target or file.group == "store":
            continue
        target = Path(file.target)
        depth = len(Path(name).parts) - 2  # work/decisions/… is replaced as a folder
        places[target.parents[depth - 1] if file.group == "work" else target] = None
        if file.group in ("databases", "inbox"):  # the journal of another database must not be applied to this one
            places |= dict.fromkeys(target.with_name(target.name + ending) for ending in ("-wal", "-shm", "-journal"))
    moved = False
    for place in places:
        if not place.exists():
            continue
        kept = aside / (place if not place.is_absolute() else place.relative_to(place.anchor))
        with naming_path(kept):
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(place, kept, copy_function=_copy_file)
        moved = True
    return moved


# ---- migrate -----------------------------------------------------------------------------------------------------------


def back_up_and_migrate(folder: Path | None, state_dir: Path) -> tuple[Path, list[str]]:
    """Bring older databases to the installed versions of their servers, after a back-up.

    Args:
        folder: of the back-up; None: a new one in `.prdit/backups`.
        state_dir: of the services; they must not run.
    Returns: the back-up, and the names of the databases that were migrated.
    Raises: ConfigError: the services run, or nothing is older. DatabaseError: a migration failed.
    """
    _check_stopped(state_dir)
    pair = databases(server_settings(), state_dir.resolve())
    older = [database for database in pair if schema(database)[0] == "older"]
    if not older:
        raise ConfigError(
            "Neither database is older than its server: there is nothing to migrate, and nothing was changed."
        )
    folder = folder or BACKUPS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    backup(folder, state_dir)
    for database in older:
        logger.info("migrating %s", database.place)
        try:
            migrate(database)
        except DatabaseError as error:
            raise DatabaseError(f"{error}\nThe state before is in {folder}: prdit restore {folder}") from error
        if (state := schema(database))[0] != "current":
            raise DatabaseError(f"{database.place} has schema {state[1]} after its migration. prdit restore {folder}")
    return folder, [database.label for database in older]


# ---- PostgreSQL --------------------------------------------------------------------------------------------------------


def _postgres(database: Database, words: list[str]) -> None:
    """Run one of PostgreSQL's commands. Address and password are in its environment. Raises: DatabaseError: it failed."""
    url = database.url
    given = {
        "PGHOST": url.host or str(url.query.get("host", "")),
        "PGPORT": str(url.port or ""),
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
        "PGSSLMODE": str(url.query.get("sslmode", "")),
    }
    environment = {**os.environ, **{key: str(value) for key, value in given.items() if value}}
    environment.pop("PRDIT_DATABASE", None)
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DatabaseError(f"{words[0]} is not installed (Debian: apt-get install postgresql-client).") from error
    if done.returncode != 0:
        raise DatabaseError(
            f"{words[0]} of {database.place} failed:\n{without_password(done.stderr, database)[-2000:]}"
        )
