"""Settings of a site: defaults, and one line for whatever is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli import _log_in, app
from flows.site import InboxSettings, ServiceSettings, SiteConfig, load_site
from storage.errors import ConfigError
from tasks.inbox.config import ListenerConfig
from tasks.maintain.config import RetentionConfig

NESTED = (InboxSettings, ListenerConfig, RetentionConfig, ServiceSettings)


@pytest.fixture
def site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".prdit").mkdir()
    return tmp_path / ".prdit" / "site.yaml"


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_site(path)
    return str(caught.value)


def test_without_a_file_everything_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_site() == SiteConfig()


def test_given_keys_replace_defaults(site_file: Path) -> None:
    site_file.write_text("configuration: demo\nlistener: {port: 104, allowed: [CT1]}\nretention: {keep_runs: 3}\n")
    site = load_site()
    assert (site.configuration, site.listener and site.listener.port, site.retention.keep_runs) == ("demo", 104, 3)
    assert site.retention.keep_days == SiteConfig().retention.keep_days


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("polcy: default", "polcy: unknown key. Known here: configuration, inbox, listener"),
        ("inbox: {foldr: x}", "inbox.foldr: unknown key. Known here: arrivals, folder, quiet_s"),
        ("listener: {port: 70000}", "listener.port: Input should be less than or equal to 65535, got 70000"),
        ("retention: {keep_days: -1}", "retention.keep_days: Input should be greater than or equal to 0, got -1"),
        ("configuration: nosuch", "configuration: 'nosuch' is no configuration of prdit; there are "),
        ("configuration: nosuch.yaml", "configuration: 'nosuch.yaml' is no such file; there are "),
        ("policy: nosuch", "policy: 'nosuch' is no policy of prdit; there are cautious, default"),
        ("store: s\ninbox: {folder: s/inbox}", "inbox.folder: s/inbox is inside store (s)"),
        ("store: in/store\ninbox: {folder: in}", "inbox.folder: in is a folder that contains store (in/store)"),
        ("inbox: {folder: in, arrivals: in/a}", "inbox.folder: in is a folder that contains inbox.arrivals (in/a)"),
        ("inbox: {folder: in, arrivals: in}", "inbox.folder: in is the same folder as inbox.arrivals"),
        ("store: s\ninbox: {arrivals: s/a}", "inbox.arrivals: s/a is inside store (s)"),
        ("", "is empty; expected a mapping of settings, such as `policy: default`"),
        ("policy: a\npolicy: b", "the key 'policy' is given twice, in lines 1 and 2"),
    ],
)
def test_what_is_wrong_is_said_with_key_and_file(site_file: Path, text: str, expected: str) -> None:
    message = refusal(site_file, text)
    assert expected in message
    assert str(site_file) in message


def test_a_link_into_the_store_is_seen(site_file: Path) -> None:
    Path("store").mkdir()
    Path("inbox").symlink_to("store")
    assert "inbox.folder: inbox is the same folder as store" in refusal(
        site_file, "store: store\ninbox: {folder: inbox}"
    )


def test_every_problem_is_listed(site_file: Path) -> None:
    message = refusal(site_file, "configuration: a\npolicy: b\nstore: in\ninbox: {folder: in}")
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == [
        "configuration",
        "policy",
        "inbox.folder",
    ]


def test_a_process_that_reads_settings_does_not_load_torch_or_prefect() -> None:
    """The watcher runs for a year."""
    code = "import sys, flows.site; print(sorted({'torch', 'prefect', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["site", *arguments])


def test_what_write_makes_is_what_holds_without_a_file(site_file: Path) -> None:
    assert call("--write").exit_code == 0
    assert load_site(site_file) == SiteConfig()
    text = site_file.read_text()
    for model in (SiteConfig, *NESTED):
        for name, field in model.model_fields.items():
            assert re.search(rf"^ *(# +)?{name}:", text, re.MULTILINE), name
            assert (field.description or "").split("\n")[0][:60] in text


def test_the_example_of_a_listener_can_be_uncommented(site_file: Path) -> None:
    call("--write")
    text = site_file.read_text()
    example = text[text.index("# listener:") : text.index("# where messages go")]
    uncommented = re.sub(r"^# ", "", example, flags=re.MULTILINE)
    site_file.write_text(text.replace("listener: null\n", "").replace(example, uncommented))
    assert load_site(site_file).listener == ListenerConfig()


def test_a_file_is_never_replaced(site_file: Path) -> None:
    site_file.write_text("policy: mine\n")
    done = call("--write")
    assert done.exit_code == 1
    assert "exists and is not replaced" in done.stderr
    assert site_file.read_text() == "policy: mine\n"


def test_secrets_are_hidden(site_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDIT_AUTH", "keeper:hunter2")
    site_file.write_text(
        "services: {database: 'postgresql://prdit:hunter2@db:5432', auth_file: /etc/prdit/auth}\n"
        "overrides: {launcher: {settings: {api_token: hunter2}}}\n"
        "notify: {webhook: {url: 'https://chat.example/hooks/hunter2'}}\n"
    )
    for output in (call().stdout, call("--json").stdout):
        assert "hunter2" not in output
        assert "postgresql://prdit:<hidden>@db:5432" in output
        assert "https://chat.example/<hidden>" in output
        assert "/etc/prdit/auth" in output
        assert "PRDIT_AUTH" in output
    assert "hunter2" in str(load_site(site_file).services.database)


def test_the_login_of_the_file_is_not_said_to_be_set_in_the_environment(
    site_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the clients log in with does not look like a choice of the user's."""
    login = site_file.parent / "login"
    login.write_text("keeper:a-long-password\n")
    login.chmod(0o600)
    site_file.write_text("services: {auth_file: .prdit/login}\n")
    environment: dict[str, str] = {}
    monkeypatch.setattr("flows.cli.os.environ", environment)
    _log_in()
    assert environment["MLFLOW_TRACKING_USERNAME"] == "keeper"
    assert "PRDIT_AUTH" not in environment


def test_wrong_settings_are_wrong_usage(site_file: Path) -> None:
    site_file.write_text("store: in\ninbox: {folder: in}\n")
    done = call()
    assert done.exit_code == 2
    assert "inbox.folder: in is the same folder as store" in done.stderr
