"""A real PostgreSQL on this machine, with a password, that ends with the block. Needs Debian's package postgresql.

PostgreSQL does not run as root: then it runs as the user `postgres`, in a folder of its own below /tmp.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ports import free_ports

USER, PASSWORD = "prdit", "p%40s-of-the-database"  # as in an address: the @ is quoted
_PROGRAMS = ("initdb", "pg_ctl")


@dataclass(frozen=True)
class Postgres:
    """A server that runs.

    Attributes:
        port: on 127.0.0.1.
        folder: of its data.
    """

    port: int
    folder: Path

    def address(self, user: str = USER, password: str = PASSWORD) -> str:
        """What PRDIT_DATABASE is set to."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}"

    def sql(self, text: str, database: str = "postgres", user: str = USER) -> str:
        """Output of one statement, by default of the administrator."""
        words = ["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", user, "-d", database, "-Atqc", text]
        environment = os.environ | {"PGPASSWORD": PASSWORD.replace("%40", "@")}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def _program(name: str) -> str | None:
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*places, os.environ["PATH"]]))


def missing() -> str:
    """Why there can be no PostgreSQL here; empty where it can."""
    programs = [name for name in _PROGRAMS if _program(name) is None]
    programs += [name for name in ("psql", "pg_dump", "pg_restore") if shutil.which(name) is None]
    if programs:
        return f"not found: {', '.join(programs)} (Debian package postgresql)"
    if os.geteuid() == 0 and not _has_user("postgres"):
        return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


def skip_without_postgres() -> None:
    """Skip a test where there is no PostgreSQL; PRDIT_REQUIRE_POSTGRES=1 makes that a failure."""
    if reason := missing():
        if os.environ.get("PRDIT_REQUIRE_POSTGRES") == "1":
            pytest.fail(f"PRDIT_REQUIRE_POSTGRES=1 but {reason}")
        pytest.skip(reason)


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Start one whose administrator is `USER`."""
    root = Path(tempfile.mkdtemp(prefix="prdit-postgres-", dir="/tmp"))
    password = root / "password"
    password.write_text(PASSWORD.replace("%40", "@"))
    if os.geteuid() == 0:
        shutil.chown(root, "postgres")
        shutil.chown(password, "postgres")
    server = Postgres(free_ports(), root / "data")
    options = f"-p {server.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    try:
        _run(["initdb", "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}", "-D", str(server.folder)])
        _run(["pg_ctl", "-D", str(server.folder), "-l", str(root / "log"), "-o", options, "-w", "-t", "60", "start"])
        yield server
    finally:
        if (server.folder / "postmaster.pid").exists():
            _run(["pg_ctl", "-D", str(server.folder), "-m", "immediate", "-w", "stop"])
        shutil.rmtree(root)


def _run(words: list[str]) -> None:
    program = _program(words[0])
    assert program
    own = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(  # its output goes to a file: the server would hold a pipe open
        [*own, program, *words[1:]], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, words
