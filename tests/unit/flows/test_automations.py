"""Automations and limits against what a server says; with a real one in tests/e2e/test_deployment.py."""

from typing import Any
from uuid import uuid4

import pytest

from flows import automations, retrain
from flows.automations import ensure_automations, switched_off
from flows.hooks import HELD
from flows.services import ServiceError, Services


class Server:
    """Answers as Prefect's server does, which adds keys to what it is given."""

    def __init__(self) -> None:
        self.automations: list[dict[str, Any]] = []
        self.limits: dict[str, int | None] = {"/work_pools/prdit": None, "/work_pools/prdit/queues/retrain": None}
        self.deployments: list[dict[str, Any]] = [
            {"id": "1", "name": "nightly", "paused": False},
            {"id": "2", "name": "verify", "paused": True},
        ]
        self.changes: list[tuple[str, str]] = []
        self.busy = 0

    def __call__(self, services: Services, method: str, path: str, body: Any = None, *, timeout_s: float) -> Any:
        if self.busy:
            self.busy -= 1
            raise ServiceError("HTTP Error 503: Service Unavailable")
        if not path.endswith("filter") and method != "GET":
            self.changes.append((method, path.rpartition("/")[2] if path.startswith("/automations") else path))
        match method, path.split("/")[1:]:
            case "POST", ["automations", "filter"]:
                names = body["automations"]["name"]["any_"] if body else [item["name"] for item in self.automations]
                return [item for item in self.automations if item["name"] in names]
            case "POST", ["automations", ""]:
                trigger = {"id": str(uuid4()), "match_related": {}, **body["trigger"]}
                trigger["expect"] = sorted(trigger["expect"], reverse=True)
                self.automations.append({"id": str(uuid4()), **body, "trigger": trigger})
            case "PUT", ["automations", name]:
                found = next(item for item in self.automations if item["id"] == name)
                found.update(body)
            case "PATCH", ["automations", name]:
                next(item for item in self.automations if item["id"] == name).update(body)
            case "POST", ["deployments", "filter"]:
                return self.deployments
            case "POST", ["deployments", name, "pause_deployment"]:
                next(item for item in self.deployments if item["id"] == name)["paused"] = True
            case "GET", ["work_pools", *_]:
                return {"concurrency_limit": self.limits[path]}
            case "PATCH", ["work_pools", *_]:
                self.limits[path] = body["concurrency_limit"]
            case "POST", ["flow_runs", "filter"]:
                return []
            case _:
                raise AssertionError((method, path))
        return None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(automations, "call_api", server)
    monkeypatch.setattr(automations, "_PAUSE_S", 0.0)
    return server


SERVICES: Any = None


def test_automations_and_limits_are_made_once(server: Server) -> None:
    ensure_automations(SERVICES)
    assert len(server.automations) == 2
    assert set(server.limits.values()) == {1}
    server.changes.clear()
    ensure_automations(SERVICES)
    assert server.changes == []


def test_a_time_that_differs_changes_the_automation_but_not_whether_it_is_on(server: Server) -> None:
    ensure_automations(SERVICES)
    server.automations[0]["enabled"] = False
    ensure_automations(SERVICES, silence_s=20.0)
    assert [item["trigger"]["within"] for item in server.automations] == [20.0, 20.0]
    assert [item["enabled"] for item in server.automations] == [False, True]
    assert len(server.automations) == 2


def test_a_limit_that_somebody_has_chosen_stays(server: Server) -> None:
    server.limits["/work_pools/prdit"] = 4
    ensure_automations(SERVICES)
    assert server.limits == {"/work_pools/prdit": 4, "/work_pools/prdit/queues/retrain": 1}


def test_what_is_switched_off_is_switched_off_again_after_deploying(server: Server) -> None:
    trigger = {"id": "t", "name": "prdit: new scans run retrain/on-new-scans", "enabled": False}
    server.automations.append(trigger)
    off = switched_off(SERVICES)
    assert off == {"verify", trigger["name"]}
    server.deployments[1]["paused"], trigger["enabled"] = False, True  # as deploying does
    ensure_automations(SERVICES, off)
    assert [item["paused"] for item in server.deployments] == [False, True]
    assert not trigger["enabled"]


def test_a_busy_server_is_asked_again_and_one_that_is_away_is_an_error(server: Server) -> None:
    server.busy = 3
    ensure_automations(SERVICES)
    assert len(server.automations) == 2
    server.busy = 100
    with pytest.raises(ServiceError, match="503"):
        ensure_automations(SERVICES)


def test_an_end_of_every_name_is_an_end() -> None:
    names = {retrain.NOTHING, retrain.WAITING, retrain.PROMOTED, retrain.CHALLENGER_HELD, HELD}
    for automation in automations._automations(150.0):
        assert {f"prefect.flow-run.{name}" for name in names} <= set(automation["trigger"]["expect"])
