"""Databases on a real PostgreSQL: made when missing and allowed, else the words for an administrator; no password in a message."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.databases import Database, DatabaseError, databases, prepare, schema
from flows.server_settings import ServerSettings
from tests.postgres import PASSWORD, USER, Postgres, postgres_server, skip_without_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    skip_without_postgres()
    with postgres_server() as running:
        yield running


def pair(server: Postgres, user: str = USER, password: str = PASSWORD) -> tuple[Database, Database]:
    return databases(ServerSettings(database=server.address(user, password)), Path("/none"))  # type: ignore[arg-type]


def test_what_is_missing_is_made_once(server: Postgres) -> None:
    assert server.sql("SELECT count(*) FROM pg_database WHERE datname IN ('prefect', 'mlflow')") == "0"
    for _ in range(2):
        for database in pair(server):
            prepare(database)
            assert schema(database) == ("empty", None)
    assert server.sql("SELECT extname FROM pg_extension WHERE extname = 'pg_trgm'", "prefect") == "pg_trgm"
    for name in ("prefect", "mlflow"):
        server.sql(f"DROP DATABASE {name}")


def test_who_may_not_make_them_is_told_what_to_ask_for(server: Postgres) -> None:
    server.sql("CREATE ROLE poor LOGIN PASSWORD 'hidden-word'")
    prefect, mlflow = pair(server, "poor", "hidden-word")
    for database in (prefect, mlflow):
        with pytest.raises(DatabaseError, match=rf'CREATE DATABASE {database.name} OWNER "poor";') as refused:
            prepare(database)
        assert "hidden" not in str(refused.value)
        server.sql(str(refused.value).split("\n")[1].strip())  # an administrator does just that
        prepare(database)
    assert server.sql("SELECT extname FROM pg_extension WHERE extname = 'pg_trgm'", "prefect") == "pg_trgm"
    server.sql("DROP EXTENSION pg_trgm", "prefect")
    server.sql("ALTER DATABASE prefect OWNER TO " + USER)
    with pytest.raises(DatabaseError, match=r"CREATE EXTENSION pg_trgm;"):
        prepare(prefect)
    for name in ("prefect", "mlflow"):
        server.sql(f"DROP DATABASE {name}")


def test_a_wrong_password_is_said_and_not_shown(server: Postgres) -> None:
    for database in pair(server, USER, "hidden-word"):
        with pytest.raises(DatabaseError, match=r"127\.0\.0\.1:\d+ says: .*password authentication failed") as refused:
            prepare(database)
        assert "hidden" not in str(refused.value)
