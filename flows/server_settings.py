"""Where the servers keep what they know, and who may ask them: environment variables, else the site's settings.

The variables are `PRDIT_DATABASE`, `PRDIT_ARTIFACTS` and `PRDIT_AUTH`.

Passwords go to processes by their environment only, never by their arguments, and stand in no message and no log.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, SecretStr

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

from flows.named_files import SITE_FILE
from flows.site import load_site
from storage.errors import ConfigError

_LOGIN = re.compile(r"[!-9;-~]+:[!-~]{8,}")  # printable ASCII: both servers and all their clients encode it alike
_LOGIN_RULE = "It must read user:password, in ASCII without spaces, the password at least 8 characters long."


class ServerSettings(BaseModel):
    """Settings of the two servers.

    Attributes:
        database: postgresql://user@host:port; None: SQLite files below the services' state.
        artifacts: a folder or s3://bucket/prefix; None: a folder beside MLflow's SQLite file.
        login: user:password that both servers ask for; None: they ask for nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: SecretStr | None = None
    artifacts: str | None = None
    login: SecretStr | None = None

    def postgres(self, name: str) -> "URL | None":
        """Address of one database, with its password where one was given; None: it is a SQLite file."""
        from sqlalchemy.engine import make_url

        return None if self.database is None else make_url(self.database.get_secret_value()).set(database=name)

    def client_variables(self) -> dict[str, str]:
        """Environment with which Prefect's and MLflow's clients log in."""
        if self.login is None:
            return {}
        text = self.login.get_secret_value()
        user, _, password = text.partition(":")
        return {
            "PRDIT_AUTH": text,
            "PREFECT_API_AUTH_STRING": text,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
        }


def server_settings() -> ServerSettings:
    """The settings of this folder's servers: from the environment, else from `.prdit/site.yaml`.

    Raises: ConfigError: one of them cannot be used; no password is in the message.
    """
    site = load_site().services if SITE_FILE.is_file() else None
    database = os.environ.get("PRDIT_DATABASE") or _plain_database(site.database if site else None)
    artifacts = os.environ.get("PRDIT_ARTIFACTS") or (site.artifacts if site else None)
    login = _login(site.auth_file if site else None)
    if database:
        _check_database(database)
    if artifacts:
        _check_artifacts(artifacts)
    return ServerSettings(
        database=SecretStr(database) if database else None,
        artifacts=artifacts,
        login=SecretStr(login) if login else None,
    )


def _plain_database(text: str | None) -> str | None:
    if text:
        from sqlalchemy.engine import make_url

        _check_database(text)
        if make_url(text).password is not None:
            raise ConfigError(
                f"{SITE_FILE}: services.database holds a password. Take it out, and give the whole address in PRDIT_DATABASE or "
                "the password in ~/.pgpass (mode 600)."
            )
    return text


def _check_database(text: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    expected = "PRDIT_DATABASE (services.database) must read postgresql://user@host:port"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # whose messages repeat the text
        raise ConfigError(f"{expected}; what it holds is no address of a database.") from None
    if url.get_backend_name() != "postgresql":
        raise ConfigError(f"{expected}, got the kind {url.drivername!r}. Without it, SQLite files are used.")
    if url.database:
        raise ConfigError(f"{expected}, without a database: prdit uses the databases prefect and mlflow there.")
    if find_spec("psycopg2") is None or find_spec("asyncpg") is None:
        raise ConfigError("PostgreSQL needs psycopg2 and asyncpg: pip install 'prdit[postgres]'.")


def _check_artifacts(text: str) -> None:
    kind, separator, rest = text.partition("://")
    if not separator:
        return
    if kind != "s3" or not rest.split("/")[0]:
        raise ConfigError(f"PRDIT_ARTIFACTS (services.artifacts) must be a folder or s3://bucket/prefix, got {text!r}.")
    if find_spec("boto3") is None:
        raise ConfigError("Artifacts on S3 need boto3: pip install 'prdit[s3]'.")


def _login(auth_file: str | None) -> str | None:
    if text := os.environ.get("PRDIT_AUTH"):
        where = "PRDIT_AUTH"
    elif auth_file is None:
        return None
    else:
        where, text = f"services.auth_file of {SITE_FILE} ({auth_file})", _read(Path(auth_file))
    if not _LOGIN.fullmatch(text):
        raise ConfigError(f"{where} cannot be used. {_LOGIN_RULE}")
    return text


def _read(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} holds a password, but others can read it: chmod 600 {path}")
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"services.auth_file of {SITE_FILE}: {path} cannot be read: {reason}. It holds user:password."
        ) from error
