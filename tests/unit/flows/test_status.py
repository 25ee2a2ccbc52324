"""The status of a site: what needs a person comes first, and everything may be down."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows import status as module
from flows.cli import app
from flows.status import status
from flows.status_page import chart, duration, page, text
from flows.status_page import figures as drawn_figures
from storage.documents.upkeep import Upkeep
from tests.unit.flows.lived_in import make_site
from tests.unit.tasks.html_tags import Tags


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["status", *arguments])


def test_an_empty_folder_with_everything_down(tmp_path: Path) -> None:
    done = call("--json")
    assert done.exit_code == 0
    value = json.loads(done.stdout)
    assert [need["do"] for need in value["needs_person"]] == ["prdit up"]
    assert (value["store"]["volumes"], value["runs"]["runs"], value["model"]["decisions"]) == (0, [], [])
    assert list(tmp_path.iterdir()) == []  # looking changes nothing
    words = Tags(page(value)).text
    assert "No service of this folder runs." in words
    assert "Nothing has been ingested into .prdit/store yet." in words


def test_what_needs_a_person_comes_first_with_the_command(tmp_path: Path) -> None:
    make_site(tmp_path)
    value = status()
    assert [(need["what"], need["do"]) for need in value["needs_person"]] == [
        ("damage in the store: 1 finding", "prdit verify .prdit/store"),
        ("the services do not run", "prdit up"),
        ("batch 3 is held: 4 series", "prdit inbox release 3   or   prdit inbox reject 3"),
        ("the last run failed: 20261109T020000.000000Z", ""),
    ]
    shown = text(value)
    assert shown.startswith("4 things need a person:")
    assert "hu_shift: the median of lung is 200 HU above" in shown


def test_a_site_in_order_needs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_site(tmp_path, troubled=False)
    up = {"running": True, "services": [{"name": "prefect", "state": "up", "up": True, "detail": ""}]}
    monkeypatch.setattr(
        module,
        "services",
        lambda: up | {"prefect_page": "http://p", "mlflow_page": "http://m", "rejected_senders": None},
    )
    value = status()
    assert value["needs_person"] == []
    assert text(value).startswith("Nothing needs a person.")
    assert "Nothing needs a person." in Tags(page(value)).text


def test_the_page_is_self_contained_and_shows_what_was_read(tmp_path: Path) -> None:
    make_site(tmp_path)
    done = call("--html")
    assert done.exit_code == 0
    html = (tmp_path / ".prdit" / "status.html").read_text()
    tags = Tags(html)
    names = [name for name, _ in tags.tags]
    assert not {"script", "link", "img", "iframe"} & set(names)
    assert [attributes for name, attributes in tags.tags if name == "svg"]
    place = tags.text.index("Needs a person")
    for later in ("damage in the store", "batch 3 is held", "Services", "Champion", "Inbox", "Disk and maintenance"):
        found = tags.text.index(later, place)
        assert found > place
        place = found
    assert "119 volumes" in tags.text
    assert "4.2 GB" in tags.text  # removed by retention
    assert "Held: its held-out loss is higher by 0.004" in tags.text


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    make_site(tmp_path)
    value = status()
    value["inbox"]["held"][0]["reason"] = "<script>alert(1)</script>"
    value["needs_person"][0]["detail"] = "<img src=x onerror=alert(1)>"
    value["runs"]["runs"][0]["error"] = "</td><script>"
    assert not {"script", "img"} & {name for name, _ in Tags(page(value)).tags}


def test_what_is_damaged_is_said_in_its_place(tmp_path: Path) -> None:
    make_site(tmp_path)
    newest = sorted((tmp_path / ".prdit/store/history").glob("*.json"))[-1]
    newest.write_text("{")
    (tmp_path / ".prdit/work/decisions/00000001.json").write_text("[]")
    value = status()
    titles = [need["what"] for need in value["needs_person"]]
    assert "the store cannot be read" in titles
    assert "champion and challenger cannot be read" in titles
    assert "batch 3 is held: 4 series" in titles
    assert "is damaged: it is no complete JSON" in Tags(page(value)).text


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"verified_at": "2026-01-01T00:00:00+00:00"}, "the store was last verified"),
        ({"verified": None, "verified_at": None}, "the store was never verified"),
        ({}, ""),
    ],
)
def test_a_store_that_nobody_verified_for_long_is_said(tmp_path: Path, changed: dict[str, Any], expected: str) -> None:
    make_site(tmp_path, troubled=False)
    place = tmp_path / ".prdit/work"
    Upkeep.load(place).model_copy(update=changed).save(place)
    found = [need["what"] for need in status()["needs_person"] if "verified" in need["what"]]
    assert len(found) == bool(expected)
    assert all(what.startswith(expected) for what in found)


def test_little_disk_is_said_with_what_takes_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_site(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1e9}))
    (need,) = [need for need in status()["needs_person"] if need["what"] == "little disk is free"]
    assert need["detail"].startswith("1.0 GB are free, 5 GB should be (retention.min_free_gb)")
    assert "Largest: store 7.1 GB" in need["detail"]


def test_the_champion_of_a_local_mlflow_is_shown(
    tmp_path: Path, mlflow_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.artifacts import Ref
    from storage.registry import PATIENTS, ModelVersion

    make_site(tmp_path)
    ref = Ref(kind="checkpoint", uri=str(tmp_path / "gone"), digest="sha256:1")
    tags = {"prdit.family": "global", "prdit.volume_size": "64", PATIENTS: "80"}

    class Known:
        def __init__(self, uri: str, workdir: Path) -> None:
            assert uri == "sqlite:///x"

        def versions(self) -> list[ModelVersion]:
            return [ModelVersion(1, ref, "r", ("champion",), tags), ModelVersion(2, ref, "r", ("challenger",))]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x")
    monkeypatch.setattr(module, "Registry", Known)
    value = status()
    assert (value["model"]["champion"]["version"], value["model"]["challenger"]["version"]) == (1, 2)
    words = " ".join(Tags(page(value)).text.split())
    assert "Version 1 is champion: global, 64 voxels wide, trained on 80 patients" in words
    assert "Not on this disk; MLflow has its files." in words
    figures = dict(drawn_figures(value["model"]["champion"]["figures"]))
    assert figures == {
        "loss, value": "0.1234",
        "loss, low": "0.1100",
        "loss, high": "0.1400",
        "anatomy": "0.9000",
        "patients": "80",
    }
    assert "loss, value" in words


def test_servers_that_the_environment_names_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "is_healthy", lambda services, name: name == "prefect")
    value = status()
    assert [(row["name"], row["state"]) for row in value["services"]["services"]] == [
        ("prefect", "up"),
        ("mlflow", "does not answer"),
    ]
    assert value["services"]["prefect_page"] == "http://127.0.0.1:9"
    assert [need["what"] for need in value["needs_person"]] == ["mlflow does not answer"]
    assert "/flow_runs" in value["flow_runs"]["problem"] or "/flows" in value["flow_runs"]["problem"]


def test_an_mlflow_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_site(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    value = status()
    assert "cannot be used" in value["model"]["registry"]
    assert len(value["model"]["decisions"]) == 2


def test_senders_that_the_listener_rejected_are_counted(tmp_path: Path) -> None:
    log = tmp_path / ".prdit/services/logs/listener.log"
    log.parent.mkdir(parents=True)
    log.write_text("10:00 an association of OTHER was rejected: its AE title is not allowed\n10:01 received\n" * 2)
    value = status()
    assert value["services"]["rejected_senders"]["count"] == 2
    assert any("rejected 2 associations" in need["what"] for need in value["needs_person"])


def test_a_flow_whose_newest_run_failed_needs_a_person_and_one_that_recovered_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_site(tmp_path)
    up = {"running": True, "services": [], "prefect_page": "", "mlflow_page": "", "rejected_senders": None}
    monkeypatch.setattr(module, "services", lambda: up)
    monkeypatch.setattr(module, "started", lambda place: "services")
    asked: list[dict[str, Any]] = []

    def run(flow: str, kind: str, day: int, ended: bool = True) -> dict[str, Any]:
        time = f"2026-11-{day:02d}T02:00:00.123456Z"
        return {
            "name": f"{flow}-{day}", "flow_id": flow, "state_name": kind.title(), "state_type": kind,
            "expected_start_time": time, "start_time": time, "end_time": time if ended else None, "total_run_time": 90.0,
            "state": {"message": f"said by {flow}-{day}"},
        }  # fmt: skip

    def answer(services: Any, method: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(body)
        if path == "/flows/filter":
            return [{"id": name, "name": name} for name in ("retrain", "prdit", "maintenance")]
        return [
            run("maintenance", "SCHEDULED", 30, ended=False),
            run("retrain", "RUNNING", 28, ended=False),
            run("retrain", "CRASHED", 27),
            run("prdit", "COMPLETED", 26),
            run("prdit", "FAILED", 25),
        ]

    monkeypatch.setattr(module, "call_api", answer)
    value = status()
    found = [need for need in value["needs_person"] if need["what"].startswith("the last run of")]
    assert [(need["what"], need["detail"]) for need in found] == [
        ("the last run of retrain crashed", "said by retrain-27")
    ]
    assert [row["flow"] for row in value["flow_runs"]["scheduled"]] == ["maintenance"]
    assert asked[1]["sort"] == "EXPECTED_START_TIME_DESC"
    words = " ".join(Tags(page(value)).text.split())
    assert "Next: maintenance 2026-11-30 02:00" in words
    assert "said by retrain-27" in words


def test_a_file_without_html_is_wrong_usage() -> None:
    assert call("somewhere.html").exit_code == 2


def test_the_chart_begins_and_ends_where_the_store_did() -> None:
    assert chart([]) is None
    steps: list[dict[str, Any]] = [
        {"created": "2026-01-01T00:00:00+00:00", "volumes": 0, "patients": 0},
        {"created": "2026-07-02T12:00:00+00:00", "volumes": 5, "patients": 5},
        {"created": "2027-01-01T00:00:00+00:00", "volumes": 10, "patients": 5},
    ]
    drawn = chart(steps)
    assert drawn is not None
    assert drawn["lines"][0]["path"] == "M46.0,156.0H355.0V84.0H664.0V12.0"
    assert [tick[0] for tick in drawn["y_ticks"]] == [0, 5, 10]
    assert [duration(seconds) for seconds in (None, 40, 600, 7200)] == ["–", "40 s", "10 min", "2.0 h"]
