"""What a flow's end says to people, and which errors Prefect tries again; real runs on the temporary server are in e2e."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRunPolicy
from prefect.states import Cancelled, Completed, Crashed, Failed

from flows import hooks
from flows.maintenance import DamageError, maintenance
from flows.pipeline import pipeline
from flows.retrain import retrain
from storage.errors import InputError, LockedError
from storage.registry import RegistryUnavailableError


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[tuple[str, str, str]]:
    """Messages that would be sent; the site has no settings."""
    messages: list[tuple[str, str, str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hooks, "notify", lambda _, severity, subject, text: messages.append((severity, subject, text)))
    monkeypatch.setattr(hooks, "url_for", lambda _: "http://127.0.0.1:1/runs/flow-run/x")
    return messages


def a_run(*, deployed: bool = True) -> Any:
    return SimpleNamespace(id=uuid4(), name="brave-owl", deployment_id=uuid4() if deployed else None, tags=[])


@pytest.mark.parametrize("flow", [pipeline, retrain, maintenance], ids=lambda flow: flow.name)
def test_every_flow_is_attended(flow: Any) -> None:
    assert [hook.__name__ for hook in flow.on_failure_hooks] == ["on_failure"]
    assert [hook.__name__ for hook in flow.on_crashed_hooks] == ["on_crashed"]
    assert [hook.__name__ for hook in flow.on_cancellation_hooks] == ["on_cancellation"]
    assert [hook.__name__ for hook in flow.on_completion_hooks] == ["on_completion"]
    assert [hook.__name__ for hook in flow.on_running_hooks] == ["on_running"]


def test_a_failure_names_its_kind_and_how_to_go_on_but_no_file(said: list[tuple[str, str, str]]) -> None:
    run = a_run()
    state: Any = Failed(message="Flow run encountered an exception: SourceError: /data/Miller^Anna/1.dcm is no CT")
    hooks.on_failure(retrain, run, state)
    [(severity, subject, text)] = said
    assert (severity, subject) == ("failure", "retrain failed (SourceError)")
    assert "Run brave-owl: The page of the run says why." in text
    assert f"`prefect flow-run retry {run.id}`" in text
    assert text.splitlines()[-1] == "http://127.0.0.1:1/runs/flow-run/x"
    assert "Miller" not in subject + text


def test_damage_of_which_maintenance_has_said_everything_is_no_second_message(said: list[tuple[str, str, str]]) -> None:
    assert DamageError.__name__ == hooks.DAMAGED
    hooks.on_failure(maintenance, a_run(), Failed(message="Flow run encountered an exception: DamageError: Damaged"))
    assert said == []
    hooks.on_failure(maintenance, a_run(), Failed(message="Flow run encountered an exception: StorageError: x"))
    assert [subject for _, subject, _ in said] == ["maintenance failed (StorageError)"]


def test_a_timeout_is_named_by_its_state(said: list[tuple[str, str, str]]) -> None:
    state: Any = Failed(name="TimedOut", message="Flow run exceeded timeout of 5 second(s)")
    hooks.on_failure(pipeline, a_run(), state)
    assert [subject for _, subject, _ in said] == ["prdit failed (TimedOut)"]


def test_a_held_run_asks_for_a_person_and_another_says_nothing(said: list[tuple[str, str, str]]) -> None:
    held: Any = Completed(name="Held", message="Batch 3 is held: {median} is 200 HU above the store's.")
    done: Any = Completed()
    hooks.on_completion(retrain, a_run(), held)
    hooks.on_completion(retrain, a_run(), done)
    [(severity, subject, text)] = said
    assert (severity, subject) == ("attention", "retrain: new scans are held")
    assert "Batch 3 is held: {median} is 200 HU above the store's. `prdit inbox ls`" in text


@pytest.mark.parametrize(
    ("hook", "state", "severity", "subject"),
    [
        (hooks.on_crashed, Crashed(), "failure", "prdit crashed"),
        (hooks.on_cancellation, Cancelled(), "info", "prdit was cancelled"),
    ],
)
def test_crash_and_cancellation(
    hook: Any, state: Any, severity: str, subject: str, said: list[tuple[str, str, str]]
) -> None:
    hook(pipeline, a_run(), state)
    assert [(one, two) for one, two, _ in said] == [(severity, subject)]


def test_whoever_runs_in_a_terminal_gets_no_message(said: list[tuple[str, str, str]]) -> None:
    run, states = a_run(deployed=False), (Failed(), Crashed(), Cancelled(), Completed(name="Held"))
    every = (hooks.on_failure, hooks.on_crashed, hooks.on_cancellation, hooks.on_completion)
    for hook, state in zip(every, states, strict=True):
        hook(pipeline, run, state)
    hooks.on_running(pipeline, run, Completed())
    assert said == []


def test_settings_of_the_site_that_are_wrong_leave_the_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".prdit").mkdir()
    (tmp_path / ".prdit" / "site.yaml").write_text("notify: {mail: x}\n")
    state: Any = Crashed()
    hooks.on_crashed(pipeline, a_run(), state)
    assert "messages go to the log alone: site settings .prdit/site.yaml:\n  notify.mail: unknown key" in caplog.text
    assert "prdit crashed: Run brave-owl" in caplog.text


class Prefect:
    """A client of Prefect that records which runs are not tried again, or cannot reach its server."""

    def __init__(self, *, away: bool = False) -> None:
        self.policies: list[Any] = []
        self._away = away

    def __call__(self, **_: Any) -> "Prefect":
        return self

    def __enter__(self) -> "Prefect":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update_flow_run(self, run_id: Any, *, empirical_policy: Any) -> None:
        if self._away:
            raise ConnectionError("Prefect is away")
        self.policies.append(empirical_policy)


def end_with(error: BaseException, prefect: Prefect, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run()
    run.empirical_policy = FlowRunPolicy(retries=2)
    monkeypatch.setattr(hooks.FlowRunContext, "get", lambda: SimpleNamespace(flow_run=run))
    monkeypatch.setattr(hooks, "worker_watched", nullcontext)
    monkeypatch.setattr(hooks, "get_client", prefect)
    with pytest.raises(type(error)) as seen, hooks.attended():
        raise error
    assert seen.value is error


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (InputError("no CT"), True),
        (RegistryUnavailableError("MLflow does not answer"), False),
        (LockedError("another process works there"), False),
        (OSError("the disk"), False),
        (KeyboardInterrupt(), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_a_retry_cannot_change_is_not_tried_again(
    error: BaseException, final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect = Prefect()
    end_with(error, prefect, monkeypatch)
    assert [policy.retries for policy in prefect.policies] == ([0] if final else [])


def test_the_error_of_a_run_is_not_hidden_by_a_prefect_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    end_with(InputError("no CT"), Prefect(away=True), monkeypatch)
    assert "Prefect does not answer (ConnectionError)" in caplog.text
