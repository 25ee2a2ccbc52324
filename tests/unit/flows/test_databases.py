"""Schemas of the servers' databases: which revision is the newest, and what becomes of other ones."""

import sqlite3
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from flows import databases as module
from flows.databases import (
    Database,
    DatabaseError,
    copy_sqlite,
    databases,
    explanation,
    newest_revision,
    prepare,
    revisions,
    schema,
)
from flows.server_settings import ServerSettings


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Database, Database]:
    for name in ("prefect", "mlflow"):
        (tmp_path / name).mkdir()
    return databases(ServerSettings(), tmp_path)


def write(database: Database, revision: str | None, tables: Sequence[str] = (), rows: Sequence[str] = ()) -> None:
    assert database.file
    with sqlite3.connect(database.file) as connection:
        if revision:
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        for name in tables:
            connection.execute(f"CREATE TABLE {name} (id TEXT)")
        for name in rows:
            connection.execute(f"INSERT INTO {name} VALUES ('1')")
    connection.close()


def before(database: Database) -> str:
    previous = revisions(database)[newest_revision(database)]
    assert previous
    return previous


def test_revisions_are_those_that_alembic_reads(pair: tuple[Database, Database]) -> None:
    prefect, mlflow = pair
    on_postgres = databases(ServerSettings(database="postgresql://me@db"), Path("/none"))[0]  # type: ignore[arg-type]
    for database, package, place in (
        (prefect, "prefect", "server/database/_migrations"),
        (on_postgres, "prefect", "server/database/_migrations"),
        (mlflow, "mlflow", "store/db_migrations"),
    ):
        spec = find_spec(package)
        assert spec
        assert spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0]) / place
        versions = folder / "versions" / (database.url.get_backend_name() if package == "prefect" else "")
        script = ScriptDirectory(str(folder), version_locations=[str(versions)])
        assert [newest_revision(database)] == script.get_heads()
        assert revisions(database) == {item.revision: item.down_revision for item in script.walk_revisions()}


def test_states(pair: tuple[Database, Database]) -> None:
    for database in pair:
        assert schema(database) == ("empty", None)
        assert database.file
        database.file.touch()
        assert schema(database) == ("empty", None)
    prefect, mlflow = pair
    write(prefect, newest_revision(prefect), ["flow"])
    assert schema(prefect) == ("current", newest_revision(prefect))
    write(mlflow, before(mlflow), ["runs"], ["runs"])
    assert schema(mlflow) == ("older", before(mlflow))


def test_older_and_newer_ones_are_refused_with_what_to_do(pair: tuple[Database, Database]) -> None:
    prefect, mlflow = pair
    write(prefect, before(prefect), ["flow"], ["flow"])
    with pytest.raises(DatabaseError, match=rf"(?s)Prefect \({prefect.file}\).*older than.*\n    prdit migrate "):
        prepare(prefect)
    assert schema(prefect) == ("older", before(prefect))
    write(mlflow, "ffffffffffff", ["runs"])  # without rows, too: a newer server knows more tables than we do
    with pytest.raises(DatabaseError, match=r"(?s)a newer MLflow wrote it.*pip install 'mlflow>.*prdit restore FOLDER"):
        prepare(mlflow)


def test_what_a_killed_server_left_unfinished_is_finished(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    migrated: list[Database] = []
    monkeypatch.setattr(module, "migrate", migrated.append)
    prefect, mlflow = pair
    write(prefect, before(prefect), ["flow", "deployment"])
    write(mlflow, None, ["experiments", "runs"])
    prepare(prefect)
    prepare(mlflow)
    assert migrated == [prefect, mlflow]


def test_tables_of_something_else_are_refused(pair: tuple[Database, Database]) -> None:
    write(pair[1], None, ["accounts"], ["accounts"])
    with pytest.raises(DatabaseError, match=r"no database of MLflow: it has tables \(accounts"):
        prepare(pair[1])


def test_a_damaged_file_is_named(pair: tuple[Database, Database]) -> None:
    file = pair[1].file
    assert file
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseError, match=f"{file}.* cannot be (read|opened): .*not a database"):
        prepare(pair[1])


def test_nobody_at_the_address_is_named_without_the_password() -> None:
    settings = ServerSettings(database="postgresql://me:hidden-word@127.0.0.1:1")  # type: ignore[arg-type]
    for database in databases(settings, Path("/none")):
        with pytest.raises(DatabaseError, match=r"PostgreSQL at 127\.0\.0\.1:1 says: .*refused") as refused:
            prepare(database)
        assert "hidden" not in str(refused.value)
        assert "hidden" not in explanation(database, "older", "x")


def test_each_driver_gets_its_own_word_for_tls() -> None:
    settings = ServerSettings(database="postgresql://me:p%40ss@db:5433/?sslmode=require")  # type: ignore[arg-type]
    prefect, mlflow = databases(settings, Path("/none"))
    (text,) = prefect.variables().values()
    assert make_url(text) == make_url("postgresql+asyncpg://me:p%40ss@db:5433/prefect?ssl=require")
    assert mlflow.variables() == {
        "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://me:p%40ss@db:5433/mlflow?sslmode=require"
    }


def test_a_copy_of_a_file_in_use_is_complete(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "one.db") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE numbers (n INTEGER)")
        connection.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(1000)])
        connection.commit()  # in the log beside the file
        copy_sqlite(tmp_path / "one.db", tmp_path / "copy.db")
    copied = sqlite3.connect(tmp_path / "copy.db")
    assert copied.execute("SELECT COUNT(*), SUM(n) FROM numbers").fetchone() == (1000, 499500)
    copied.close()
