"""The servers' databases: are they there, were they written by this version, and how are they brought to it.

Both servers keep the revision of their tables in a table `alembic_version`. Each release brings the revisions that it knows, a file
each: its server works with the newest of them. An older database is not migrated silently, because there is no way back without a
back-up. A revision that the release does not know was written by a newer one.
"""

import logging
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import sqlalchemy
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from flows.server_settings import ServerSettings
from storage.errors import UserError

State = Literal["empty", "current", "older", "newer"]

_TIMEOUT_S = 10
_REVISION = re.compile(r"^(?P<key>revision|down_revision)(?:\s*:[^=]*)?\s*=\s*(?P<value>.+)$", re.MULTILINE)
_MIGRATIONS = {"prefect": "server/database/_migrations/versions", "mlflow": "store/db_migrations/versions"}
_LABELS = {"prefect": "Prefect", "mlflow": "MLflow"}
# Rows that nobody wants to lose; a schema without any was being made when its server was killed.
_CONTENT = {"prefect": ("flow", "deployment"), "mlflow": ("runs", "registered_models")}
# MLflow's command takes the address as an argument, which everybody on the machine can read: so not as a process of its own.
_MIGRATE_MLFLOW = (
    "import os; from mlflow.cli import cli; cli(['db', 'upgrade', os.environ['MLFLOW_BACKEND_STORE_URI']])"
)
logger = logging.getLogger("prdit.services")


class DatabaseError(UserError, RuntimeError):
    """A database cannot be reached, or was written by another version of its server."""


@dataclass(frozen=True)
class Database:
    """One server's database.

    Attributes:
        name: `prefect` or `mlflow`.
        url: where it is; `sqlite` or `postgresql+psycopg2`.
        state_dir: of the services.
    """

    name: Literal["prefect", "mlflow"]
    url: URL
    state_dir: Path

    @property
    def label(self) -> str:
        """The server's name."""
        return _LABELS[self.name]

    @property
    def file(self) -> Path | None:
        """The SQLite file; None on PostgreSQL."""
        return Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None

    @property
    def place(self) -> str:
        """Where it is, for messages: without a password."""
        return str(self.file) if self.file else f"{self.url.database} on {self.url.host or 'this machine'}"

    def variables(self) -> dict[str, str]:
        """Environment that gives the address to the server."""
        if self.name == "mlflow":
            return {"MLFLOW_BACKEND_STORE_URI": self.url.render_as_string(hide_password=False)}
        if self.file:
            return {"PREFECT_HOME": str(self.state_dir / "prefect")}
        query = {("ssl" if key == "sslmode" else key): value for key, value in self.url.query.items()}  # asyncpg's word
        url = self.url.set(drivername="postgresql+asyncpg", query=query)
        return {"PREFECT_API_DATABASE_CONNECTION_URL": url.render_as_string(hide_password=False)}


def databases(settings: ServerSettings, state_dir: Path) -> tuple[Database, Database]:
    """The databases of the Prefect and the MLflow server."""
    return _database("prefect", settings, state_dir), _database("mlflow", settings, state_dir)


def _database(name: Literal["prefect", "mlflow"], settings: ServerSettings, state_dir: Path) -> Database:
    url = settings.postgres(name)
    if url is None:
        return Database(name, URL.create("sqlite", database=str(state_dir / name / f"{name}.db")), state_dir)
    return Database(name, url.set(drivername="postgresql+psycopg2"), state_dir)


# ---- is it there -------------------------------------------------------------------------------------------------------


def prepare(database: Database) -> None:
    """Make sure that a server can start on its database; makes what is missing on PostgreSQL.

    Raises: DatabaseError: it cannot be reached or made, or another version of the server wrote it; the message says what to do.
    """
    if database.file is None:
        _create(database)
    state, revision = schema(database)
    if state == "older" and not _has_content(database):
        logger.warning("the tables of %s were not finished; they are now", database.place)
        migrate(database)
    elif state in ("older", "newer"):
        raise DatabaseError(explanation(database, state, revision))


def explanation(database: Database, state: State, revision: str | None) -> str:
    """What is wrong with a schema, and the commands that put it right."""
    installed = f"{database.label} {version(database.name)}"
    if state == "older":
        return (
            f"The database of {database.label} ({database.place}) has schema {revision}, older than that of {installed} "
            f"({newest_revision(database)}). Nothing was changed. Back it up and migrate it:\n"
            f"    prdit migrate        (copies both databases to .prdit/backups/ first; no way back but that copy)\n"
            f"or install the version of {database.label} it was written with."
        )
    return (
        f"The database of {database.label} ({database.place}) has schema {revision}, which {installed} does not know: a newer "
        f"{database.label} wrote it. Nothing was changed. Install that version again (pip install '{database.name}>"
        f"{version(database.name)}'), or restore a back-up made with this one: prdit restore FOLDER"
    )


def _create(database: Database) -> None:
    try:
        with connected(database) as connection:
            _add_extension(database, connection)
        return
    except DatabaseError as error:
        failed = error
    with connected(database, "postgres") as connection:  # raises what is wrong with the server or the login
        names = connection.execute(sqlalchemy.text("SELECT datname FROM pg_database")).scalars().all()
        if database.url.database in names:
            raise failed
        user = database.url.username
        try:
            connection.execute(sqlalchemy.text(f'CREATE DATABASE "{database.url.database}"'))
        except SQLAlchemyError as error:
            if "already exists" not in str(error):  # the other server's start was quicker
                raise DatabaseError(
                    f"There is no database {database.url.database} on {database.url.host}, and {user} may not make it. Have it "
                    f'made by an administrator:\n    CREATE DATABASE {database.url.database} OWNER "{user}";'
                ) from error
    with connected(database) as connection:
        _add_extension(database, connection)


def _add_extension(database: Database, connection: Connection) -> None:
    if database.name != "prefect":
        return
    found = connection.execute(sqlalchemy.text("SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'")).first()
    if found is None:
        try:
            connection.execute(sqlalchemy.text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
        except SQLAlchemyError as error:
            raise DatabaseError(
                f"Prefect needs the extension pg_trgm in {database.place}, and {database.url.username} may not add it. Have an "
                "administrator run, in that database:\n    CREATE EXTENSION pg_trgm;\n(Debian: it is in postgresql-contrib)"
            ) from error


@contextmanager
def connected(database: Database, name: str | None = None) -> Iterator[Connection]:
    """A connection that commits every statement.

    Args:
        database: of a server.
        name: another database of the same PostgreSQL.
    Raises: DatabaseError: it cannot be opened.
    """
    url, options = database.url, {"isolation_level": "AUTOCOMMIT", "poolclass": NullPool}
    if database.file is None:
        url = url.set(database=name or url.database)
        engine = sqlalchemy.create_engine(url, connect_args={"connect_timeout": _TIMEOUT_S}, **options)
    else:
        engine = sqlalchemy.create_engine("sqlite://", creator=lambda: _read_only(database.file), **options)
    try:
        connection = engine.connect()
    except (SQLAlchemyError, sqlite3.Error) as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        where = f"PostgreSQL at {url.host}:{url.port or 5432}" if database.file is None else database.place
        raise DatabaseError(
            f"The database of {database.label} cannot be opened. {where} says: {reason}\nCheck that it runs and that user, "
            "password and address in PRDIT_DATABASE (or services.database and ~/.pgpass) are right."
            if database.file is None
            else f"The database of {database.label} ({where}) cannot be opened: {reason}."
        ) from error
    with connection:
        yield connection


def _read_only(path: Path | None) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(str(path)).resolve().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)


# ---- which version wrote it --------------------------------------------------------------------------------------------


def schema(database: Database) -> tuple[State, str | None]:
    """The state of a schema against the installed version of its server, and its revision.

    Raises: DatabaseError: it cannot be read, or holds tables of something else.
    """
    if database.file and not (database.file.is_file() and database.file.stat().st_size):
        return "empty", None
    try:
        with connected(database) as connection:
            tables = set(sqlalchemy.inspect(connection).get_table_names())
            found = None
            if "alembic_version" in tables:
                found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    except SQLAlchemyError as error:
        raise DatabaseError(f"The database of {database.label} ({database.place}) cannot be read: {error}") from error
    if found is None and not tables - {"alembic_version"}:
        return "empty", None
    if found is None and not _is_begun(database, tables):
        raise DatabaseError(
            f"{database.place} is no database of {database.label}: it has tables ({', '.join(sorted(tables)[:3])}, …) without a "
            f"revision. Give {database.label} a database of its own."
        )
    known = revisions(database)
    if found is not None and found not in known:
        return "newer", found
    return ("current" if found == newest_revision(database) else "older"), found


def _is_begun(database: Database, tables: set[str]) -> bool:
    """Whether tables without a revision are those of a server that was killed while it made them."""
    return bool(tables & set(_CONTENT[database.name])) and not _has_content(database)


def revisions(database: Database) -> dict[str, str | None]:
    """Every revision that the installed server knows, with the one before it."""
    spec = find_spec(database.name)
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseError(f"{database.label} is not installed: make setup")
    folder = Path(spec.submodule_search_locations[0]) / _MIGRATIONS[database.name]
    if database.name == "prefect":
        folder /= database.url.get_backend_name()
    found: dict[str, str | None] = {}
    for path in folder.glob("*.py"):
        values = {match["key"]: _quoted(match["value"]) for match in _REVISION.finditer(path.read_text("utf-8"))}
        if revision := values.get("revision"):
            found[revision] = values.get("down_revision")
    return found


def _quoted(text: str) -> str | None:
    match = re.match(r"""["'](\w+)["']""", text.strip())
    return match[1] if match else None


def newest_revision(database: Database) -> str:
    """The revision that the installed server works with.

    Raises: DatabaseError: its files are not as expected.
    """
    known = revisions(database)
    last = set(known) - set(known.values())
    if len(last) != 1:
        raise DatabaseError(f"{database.label} {version(database.name)} has no single newest schema: {sorted(last)}")
    return last.pop()


def _has_content(database: Database) -> bool:
    with connected(database) as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        rows = [
            connection.execute(sqlalchemy.text(f"SELECT 1 FROM {table} LIMIT 1")).first()
            for table in _CONTENT[database.name]
            if table in tables
        ]
    return any(row is not None for row in rows)


# ---- bring it to this version ------------------------------------------------------------------------------------------


def migrate(database: Database) -> None:
    """Bring a schema to the installed version, with the server's own command.

    Raises: DatabaseError: that failed; the message ends with its output.
    """
    commands = {
        "prefect": ["-m", "prefect", "--no-prompt", "server", "database", "upgrade", "-y"],
        "mlflow": ["-c", _MIGRATE_MLFLOW],
    }
    done = subprocess.run(
        [sys.executable, *commands[database.name]],
        env={**_without_servers(), **database.variables()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        output = without_password(done.stdout, database)[-2000:]
        raise DatabaseError(f"{database.label} could not migrate {database.place}:\n{output}")


def without_password(text: str, database: Database) -> str:
    """A server's output without the database's password."""
    password = database.url.password
    return text.replace(str(password), "***") if password else text


def _without_servers() -> dict[str, str]:
    """Our environment without settings of Prefect or MLflow, which may be for other servers."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    return inherited | {"MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite file that may be in use, complete and consistent. Raises: sqlite3.Error: it cannot be read."""
    with closing(_read_only(source)) as opened, closing(sqlite3.connect(target)) as copy:
        opened.backup(copy)
        found: Any = copy.execute("PRAGMA integrity_check").fetchone()
    if found != ("ok",):
        raise sqlite3.DatabaseError(f"its integrity check says {found[0]}")
