"""What a retraining is given: the site's settings and parameters; what is refused, with exit code 2 and nothing changed."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import flows.installation
import flows.retrain_command
from flows.cli import app
from flows.config import load_config
from flows.policy import load_policy
from flows.record import tracking_uri
from flows.retrain import retrain
from flows.retrain_setup import Setup
from flows.servers import Services
from storage.documents.retraining import Retraining
from storage.errors import ConfigError
from tasks.retrain.rounds import Rounds
from tests.factories import make_store, page_submits
from tests.unit.tasks.arrivals import Arrivals, arrivals

__all__ = ["arrivals"]  # a fixture


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def site(**values: Any) -> None:
    Path(".prdit").mkdir(exist_ok=True)
    Path(".prdit/site.yaml").write_text(yaml.safe_dump(values))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_an_untouched_form_runs_what_the_site_says() -> None:
    site(configuration="tiny", policy="eager", overrides={"sample": {"seed": 9}}, store="own/store")
    submitted = {
        name: {} if isinstance(value, dict) else value
        for name, value in page_submits(retrain.parameters.model_dump()).items()
    }
    setup = Setup.of(**submitted)
    assert setup.policy == load_policy("eager")
    assert setup.policy_name == "eager"
    assert setup.config == load_config("tiny", {"sample": {"seed": 9}, "store": "own/store"})
    assert setup.inbox == Path(".prdit/inbox")


def test_parameters_come_before_the_site() -> None:
    site(configuration="tiny", policy="eager")
    setup = Setup.of("small", "in", "st", "cautious", {"sample": {"num_volumes": 5}}, "arr")
    assert (setup.inbox, setup.store, setup.arrivals) == (Path("in"), Path("st"), Path("arr"))
    assert setup.policy.start == "scratch"
    assert setup.config.sample.num_volumes == 5
    assert setup.config.base == "small"


def test_a_source_of_a_configuration_is_not_ingested_and_a_snapshot_not_fixed() -> None:
    site(configuration="tiny", overrides={"snapshot": "3"})
    setup = Setup.of()
    assert (setup.config.source, setup.config.snapshot) == (None, None)


def test_settings_change_what_a_retraining_is_continued_with_but_places_do_not() -> None:
    site(configuration="tiny")
    digest = Setup.of().settings
    assert Setup.of(store="elsewhere", overrides={"workdir": "w"}).settings == digest
    assert Setup.of(policy="eager").settings != digest
    assert Setup.of(overrides={"recipe": {"local": {"lr": 0.5}}}).settings != digest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "bold"], "there are cautious, default, eager"),
        (["--policy", "never.yaml"], "can never fire"),
        (["--inbox", ".prdit/store/in"], "lie in each other"),
        (["--config", "none"], "'none' is not a configuration"),
        (["--set", "recipe.local.rate=1"], "unknown key"),
    ],
)
def test_what_cannot_be_is_refused(home: Path, arguments: list[str], says: str) -> None:
    Path("never.yaml").write_text("{min_new_volumes: null, min_new_share: null, max_days: null}")
    before = files(home)
    for more in ([], ["--dry-run"]):
        shown = CliRunner().invoke(app, ["retrain", *arguments, *more])
        assert shown.exit_code == 2, shown.output
        assert says in shown.output.replace("\n", " ")
    assert files(home) == before


def test_a_dry_run_says_what_goes_on_and_changes_nothing(home: Path) -> None:
    snapshot = make_store(home / "store", num_volumes=3)
    grid = {"spacing_mm": 8.0, "num_levels": 1, "interpolation": "linear"}
    arguments = ["retrain", "--dry-run", "--json", "--store", "store", "--policy", "eager", "--config", "tiny"]
    arguments += [part for key, value in grid.items() for part in ("--set", f"ingest.{key}={value}")]
    before = files(home)
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout.splitlines()[-1])
    assert (value["state"], value["champion"], value["start"], value["goes_on"]) == ("train", None, "scratch", None)
    assert "3 volume(s) that no training has had yet, of 3 new patient(s); 3 are listed." in value["reason"]
    assert files(home) == before
    settings = Setup.of("tiny", store="store", policy="eager", overrides={"ingest": grid}).settings
    Rounds(home / ".prdit" / "work").begin(
        Retraining(
            snapshot=snapshot.digest,
            num_volumes=3,
            num_patients=3,
            reason="it was due",
            policy="eager",
            settings=settings,
            champion=None,
            initial="",
            begun="2027-01-01T00:00:00+00:00",
        )
    )
    text = CliRunner().invoke(app, [one for one in arguments if one != "--json"]).stdout
    assert "begun at 2027-01-01T00:00:00+00:00 would go on: it was due" in text


def test_a_site_that_cannot_be_read_is_refused() -> None:
    site(policy="bold")
    with pytest.raises(ConfigError, match="policy: 'bold'"):
        Setup.of()


def test_in_a_terminal_it_works_with_the_mlflow_of_the_local_services(monkeypatch: pytest.MonkeyPatch) -> None:
    site(configuration="tiny")
    seen: list[str] = []

    def foreseen(setup: Setup) -> dict[str, Any]:
        seen.append(tracking_uri(setup.workdir))  # which `Setup.registry` and the run's record work with
        raise ConfigError("seen")

    monkeypatch.setattr(flows.retrain_command, "foreseen", foreseen)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert CliRunner().invoke(app, ["retrain", "--dry-run"]).exit_code == 2
    assert seen == [f"sqlite:///{Path.cwd() / '.prdit/work/mlflow.db'}"]
    monkeypatch.setattr(
        flows.installation, "started", lambda place: SimpleNamespace(mlflow_url="http://127.0.0.1:5999")
    )
    assert CliRunner().invoke(app, ["retrain", "--dry-run"]).exit_code == 2
    assert seen[1:] == ["http://127.0.0.1:5999"]


def test_in_a_terminal_it_is_a_run_of_the_local_prefect_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its heartbeats, without which that server would take it for dead; servers that are named come first."""
    site(configuration="tiny")
    services = Services(
        state_dir=Path("/s"), prefect_ui_url="http://127.0.0.1:4299", mlflow_url="http://127.0.0.1:5999"
    )
    monkeypatch.setattr(flows.installation, "running", lambda place: services)
    for named, expected in ((None, "http://127.0.0.1:4299/api"), ("http://127.0.0.1:1/api", "http://127.0.0.1:1/api")):
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
            )
            if named:
                os.environ["PREFECT_API_URL"] = named
            patch.setattr(flows.installation, "started", lambda place: services)
            flows.installation.use_services()
            assert os.environ["PREFECT_API_URL"] == expected
            assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5999"
            assert ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in os.environ) == (named is None)


def test_a_dry_run_names_complete_series_that_wait(arrivals: Arrivals) -> None:
    arrivals.series("a", "1.2.3")
    arrivals.series("b", "1.2.4")
    arrivals.settle()
    arrivals.series("late", "1.2.5")
    arrivals.look()
    arguments = ["retrain", "--dry-run", "--config", "tiny", "--arrivals", str(arrivals.ledger.folder)]
    value = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert (value["series_waiting"], value["batches_open"]) == (2, [])
    shown = CliRunner().invoke(app, arguments).stdout
    assert "complete series that would be ingested first, which may change what follows: 2" in shown
    assert arrivals.ledger.waiting() == (2, 0)
