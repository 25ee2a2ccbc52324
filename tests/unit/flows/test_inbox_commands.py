"""`prdit inbox`, `watch`, `listen`: what a person sees and may do, and clear refusals with exit code 2."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from storage.inbox_ledger import Ledger
from tests.unit.storage.test_inbox_ledger import add_series


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prdit(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def as_json(*arguments: str) -> dict[str, Any]:
    result = prdit(*arguments, "--json")
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return value


@pytest.fixture
def ledger(here: Path) -> Ledger:
    """One held batch, and one series that waits."""
    made = Ledger(here / ".prdit" / "arrivals")
    add_series(made, "1.2.3")
    made.new_batch(10)
    made.set_batch(1, "held", reason="200 HU brighter than the store")
    add_series(made, "1.2.4")
    return made


def test_inbox_lists_what_waits(ledger: Ledger) -> None:
    value = as_json("inbox")
    assert value["counts"] == {"complete": 1, "taken": 1}
    assert [item["item"] for item in value["items"]] == ["1.2.4"]
    assert [(batch["number"], batch["state"], batch["num_series"]) for batch in value["batches"]] == [(1, "held", 1)]
    assert as_json("inbox", "ls", "--all")["items"][0]["item"] == "1.2.3"
    text = prdit("inbox").stdout
    assert "200 HU brighter" in text
    assert "1 complete, 1 taken" in text


def test_release_and_reject(ledger: Ledger) -> None:
    assert as_json("inbox", "release", "1")["released"] is True
    assert ledger.batch(1).state == "open"
    ledger.set_batch(1, "held", reason="again")
    assert as_json("inbox", "reject", "1", "--reason", "wrong scanner")["reason"] == "wrong scanner"
    assert ledger.batch(1).state == "rejected"


@pytest.mark.parametrize("what", ["release", "reject"])
@pytest.mark.parametrize(("number", "sentence"), [("7", "There is no batch 7"), ("1", "Batch 1 is listed")])
def test_what_cannot_be_decided_is_refused(ledger: Ledger, what: str, number: str, sentence: str) -> None:
    ledger.set_batch(1, "listed")
    before = ledger.batches()
    result = prdit("inbox", what, number)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert ledger.batches() == before


def test_without_a_ledger(here: Path) -> None:
    for arguments in (["inbox"], ["inbox", "release", "1"]):
        result = prdit(*arguments)
        assert result.exit_code == 2
        assert "There is no ledger of an inbox" in result.stderr
    assert not (here / ".prdit").exists()


@pytest.mark.parametrize("command", ["watch", "listen"])
@pytest.mark.parametrize("inbox", [".prdit/store/inbox", ".prdit", ".prdit/arrivals"])
def test_an_inbox_in_the_store_is_refused(here: Path, command: str, inbox: str) -> None:
    result = prdit(command, "--inbox", inbox)
    assert result.exit_code == 2
    assert "lie in each other" in result.stderr
    assert not (here / ".prdit").exists()


def test_a_listener_that_nobody_may_send_to_is_refused() -> None:
    result = prdit("listen")
    assert result.exit_code == 2
    assert "no AE title that may send" in result.stderr


def test_a_port_in_use_is_refused(here: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        result = prdit("listen", "--allow", "SCANNER", "--port", port)
    assert result.exit_code == 2
    assert f"cannot use 127.0.0.1:{port}: another program listens there" in result.stderr
    assert not (here / ".prdit").exists()


@pytest.mark.parametrize("title", ["LONGER-THAN-16-LETTERS", "", "  ", "A\\B", "ÄÖ", "A\nB"])
@pytest.mark.parametrize("option", ["--ae-title", "--allow"])
def test_what_is_no_ae_title_is_refused(here: Path, option: str, title: str) -> None:
    result = prdit("listen", "--allow", "SCANNER", option, title)
    assert result.exit_code == 2
    assert "is no AE title: 1 to 16 characters of ASCII" in result.stderr
    assert not (here / ".prdit").exists()
