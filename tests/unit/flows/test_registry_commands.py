"""`prdit models`, and registered models wherever a checkpoint is named: what is printed, and exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows import cli
from flows.cli import app
from flows.named_files import SITE_FILE
from storage.artifacts import Ref
from storage.registry import MODEL, REFUSED, Registry
from tasks.run.stage import StageOutcome
from tests.ports import free_ports
from tests.unit.tasks.registered import Lab


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Versions 1 and 2 of the model that commands mean, in the file of a working folder."""
    root = tmp_path_factory.mktemp("models")
    (root / "work").mkdir()
    made = Lab(root, f"sqlite:///{root / 'work' / 'mlflow.db'}")
    made.registry = Registry(made.uri, MODEL, workdir=made.workdir)
    for number in (1, 2):
        made.register(number)
    return made


@pytest.fixture
def lab(registered: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return registered


def call(lab: Lab, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--workdir", str(lab.workdir)])


def values(result: Result) -> dict[str, object]:
    found: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_promotion_rollback_and_what_ls_and_show_say(lab: Lab) -> None:
    """One story, in order: the versions belong to the module."""
    refused = call(lab, "models", "rollback", "--json")
    assert (refused.exit_code, values(refused)["exit_code"]) == (2, 2)
    assert "nothing to roll back: no version of prdit is champion" in str(values(refused)["error"])
    assert not (lab.workdir / "decisions" / "00000001.json").exists()

    for version in ("1", "2"):
        promoted = call(lab, "models", "promote", version, "--reason", f"looks right, {version}")
        assert promoted.exit_code == 0, promoted.output
    assert promoted.stdout == "promoted by command: champion is version 2 (before: 1). looks right, 2\n"
    listed = call(lab, "models", "ls")
    rows = listed.stdout.splitlines()
    assert rows[2].split()[:2] == ["2", "champion"]
    assert rows[2].endswith("2 patients     promoted: looks right, 2")
    as_json = values(call(lab, "models", "ls", "--json"))["versions"]
    assert [(row["version"], row["aliases"], row["train_patients"]) for row in as_json] == [  # type: ignore[attr-defined]
        (1, [], "2"),
        (2, ["champion"], "2"),
    ]
    again = call(lab, "models", "promote", "champion", "--reason", "again")
    assert again.exit_code == 2
    assert "champion already" in again.output
    back = call(lab, "models", "rollback", "--reason", "grain")
    assert back.stdout == "rolled back by command: champion is version 1 (before: 2). grain\n"
    shown = call(lab, "models", "show", "2")
    assert [line.split("  ")[1] for line in shown.stdout.splitlines()[-2:]] == [
        "promoted by command: champion is version 2 (before: 1). looks right, 2",
        "rolled back by command: champion is version 1 (before: 2). grain",
    ]
    lab.registry.tag(2, {REFUSED: "a patient was forgotten"})
    refused = call(lab, "models", "promote", "2", "--reason", "r")
    assert refused.exit_code == 2
    assert "must not be promoted: a patient was forgotten" in refused.output
    assert "refused: a patient was forgotten" in call(lab, "models", "ls").stdout
    assert len(list((lab.workdir / "decisions").glob("*.json"))) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("models", "show", "champoin"), "no version 'champoin'; it has"),
        (("models", "promote", "7", "--reason", "r"), "no version '7'"),
        (("models", "promote", "1", "--reason", " "), "--reason is empty"),
        (("sample", "models:/prdit@champoin"), "no alias 'champoin' of model 'prdit'"),
        (("sample", "models:/prdit/7"), "no version '7'"),
        (("sample", "models:/other@champion"), "of model 'other'"),
        (("ema", "models:/prdit/latest"), "names no model: expected models:/prdit@champion"),
        (("export-checkpoint", "models:/prdit/9", "out.pt"), "no version '9'"),
        (("train", "global", "--start", "models:/prdit/9", "--config", "tiny"), "no version '9'"),
        (("reproduce", "models:/prdit/9"), "no version '9'"),
    ],
)
def test_what_names_nothing_is_one_sentence(lab: Lab, arguments: tuple[str, ...], says: str) -> None:
    shown = call(lab, *arguments)
    assert shown.exit_code == 2, shown.output
    assert says in shown.output
    assert len(shown.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("models", "show", "9"), ("ema", "models:/prdit/9"), ("export-checkpoint", "models:/prdit/9", "out.pt")],
)
def test_without_a_working_folder_the_site_s_is_meant(lab: Lab, arguments: tuple[str, ...]) -> None:
    SITE_FILE.parent.mkdir()
    SITE_FILE.write_text(json.dumps({"overrides": {"workdir": str(lab.workdir)}}), encoding="utf-8")
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 2, shown.output
    assert f"MLflow at {lab.uri} has no version '9'" in shown.output


@pytest.mark.parametrize("arguments", [("models", "ls"), ("sample", "models:/prdit@champion")])
def test_a_server_that_is_away_is_one_sentence(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports()}")
    shown = call(lab, *arguments)
    assert shown.exit_code == 2, shown.output
    assert "cannot be used (connection refused). Start it (`prdit up`)" in shown.output


def test_without_a_registered_model_ls_says_so_and_makes_nothing(lab: Lab, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["models", "ls", "--workdir", str(tmp_path / "new")])
    assert shown.exit_code == 0, shown.output
    assert "has no version of model prdit" in shown.stdout
    assert not (tmp_path / "new").exists()


def test_sample_takes_a_registered_model(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Ref]] = []

    def stand_in(config: object, last: str, given: dict[str, Ref]) -> StageOutcome:
        asked.append(given)
        return StageOutcome(ref=next(iter(given.values())), cached=True, seconds=0.0, mlflow_run_id="")

    monkeypatch.setattr(cli, "run_stages", stand_in)
    shown = call(lab, "sample", "models:/prdit/1", "--config", "tiny")
    assert shown.exit_code == 0, shown.output
    (given,) = asked
    assert list(given.values()) == [lab.registry.find(1).checkpoint]  # type: ignore[union-attr]
