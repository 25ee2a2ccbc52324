"""Settings of a site: defaults, and one line for whatever is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.site import SiteConfig, load_site
from storage.errors import ConfigError


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
        ("policy: nosuch", "policy: 'nosuch' is no policy of prdit; there are default"),
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
