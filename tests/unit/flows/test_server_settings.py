"""Settings of the servers: what is taken, what is refused, and that no password is repeated."""

from pathlib import Path

import pytest

from flows.server_settings import server_settings
from storage.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PRDIT_DATABASE", "PRDIT_ARTIFACTS", "PRDIT_AUTH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".prdit").mkdir()
    return tmp_path


def write_site(folder: Path, text: str) -> None:
    (folder / ".prdit" / "site.yaml").write_text(text)


def test_nothing_is_needed() -> None:
    settings = server_settings()
    assert (settings.database, settings.artifacts, settings.login) == (None, None, None)
    assert settings.postgres("prefect") is None
    assert settings.client_variables() == {}


def test_the_environment_comes_before_the_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = folder / "login"
    secret.write_text("site:from-the-file\n")
    secret.chmod(0o600)
    write_site(folder, "services: {database: 'postgresql://me@db:5433', artifacts: /data/art, auth_file: login}\n")
    settings = server_settings()
    assert str(settings.postgres("mlflow")) == "postgresql://me@db:5433/mlflow"
    assert settings.artifacts == "/data/art"
    assert settings.client_variables() == {
        "PRDIT_AUTH": "site:from-the-file",
        "PREFECT_API_AUTH_STRING": "site:from-the-file",
        "MLFLOW_TRACKING_USERNAME": "site",
        "MLFLOW_TRACKING_PASSWORD": "from-the-file",
    }
    monkeypatch.setenv("PRDIT_DATABASE", "postgresql://you:p%40ss@other")
    monkeypatch.setenv("PRDIT_AUTH", "env:with:colons-in-it")
    monkeypatch.setenv("PRDIT_ARTIFACTS", "s3://bucket/below")
    settings = server_settings()
    url = settings.postgres("prefect")
    assert url is not None
    assert (url.password, url.host, url.database) == ("p@ss", "other", "prefect")
    assert settings.artifacts == "s3://bucket/below"
    assert settings.client_variables()["MLFLOW_TRACKING_PASSWORD"] == "with:colons-in-it"
    assert "p%40ss" not in repr(settings)
    assert "colons" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PRDIT_DATABASE", "mysql://me:hidden-word@db", "got the kind 'mysql'"),
        ("PRDIT_DATABASE", "hidden-word", "no address of a database"),
        ("PRDIT_DATABASE", "postgresql://me:hidden-word@db/mine", "without a database"),
        ("PRDIT_ARTIFACTS", "gs://bucket", "a folder or s3://bucket/prefix, got 'gs://bucket'"),
        ("PRDIT_ARTIFACTS", "s3:///prefix", "a folder or s3://bucket/prefix"),
        ("PRDIT_AUTH", "hidden-word-without-user", "must read user:password"),
        ("PRDIT_AUTH", "me:hidden", "at least 8 characters"),
        ("PRDIT_AUTH", "me:hidden-wörd", "in ASCII"),
        ("PRDIT_AUTH", "me:hidden-word\n", "without spaces"),
    ],
)
def test_what_cannot_be_used_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message) as refused:
        server_settings()
    assert name in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_password_in_the_sites_file_is_refused(folder: Path) -> None:
    write_site(folder, "services: {database: 'postgresql://me:hidden-word@db'}\n")
    with pytest.raises(ConfigError, match=r"\.pgpass") as refused:
        server_settings()
    assert "hidden" not in str(refused.value)


def test_a_login_that_others_can_read_is_refused(folder: Path) -> None:
    write_site(folder, "services: {auth_file: login}\n")
    with pytest.raises(ConfigError, match="login cannot be read: No such file"):
        server_settings()
    secret = folder / "login"
    secret.write_text("me:hidden-word")
    secret.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600") as refused:
        server_settings()
    assert "hidden" not in str(refused.value)
