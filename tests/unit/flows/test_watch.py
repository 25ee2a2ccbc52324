"""Following a flow run: recorded answers of Prefect's API in, what the terminal shows out."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from flows.services import ServiceError
from flows.watch import RunProgress, StageProgress, follow

STAGES = ("ingest", "split", "train-local")
RUN = "3bc1d200-0d80-4d02-9316-03dde96e4f2c"


def task(name: str, state: str, seconds: float) -> dict[str, Any]:
    """A task run as `/task_runs/filter` gives it, without what is not read."""
    kind = {"Cached": "COMPLETED"}.get(state, state.upper())
    return {
        "id": f"id-{name}",
        "name": f"{name}-af0",
        "state_type": kind,
        "state_name": state,
        "estimated_run_time": seconds,
    }


def report(name: str, done: int, total: int) -> dict[str, Any]:
    """A progress artifact as `/artifacts/filter` gives it."""
    return {"task_run_id": f"id-{name}", "data": 100 * done / total, "description": f"{done} of {total}"}


Answer = tuple[str, list[dict[str, Any]], list[dict[str, Any]]]


class Prefect:
    """Answers in the order they were recorded, one set per second of a clock that only `sleep` moves."""

    def __init__(self, answers: "list[Answer | None]") -> None:
        self.answers, self.seconds = answers, 0.0

    def call(self, method: str, path: str, body: Any) -> Any:
        answer = self.answers[min(int(self.seconds), len(self.answers) - 1)]
        if answer is None:
            raise ServiceError("no answer")
        state, tasks, reports = answer
        if (method, path) == ("GET", f"/flow_runs/{RUN}"):
            kind = {"Late": "SCHEDULED", "Cached": "COMPLETED"}.get(state, state.upper())
            return {"state_type": kind, "state_name": state}
        if (method, path) == ("POST", "/task_runs/filter"):
            assert body == {"flow_runs": {"id": {"any_": [RUN]}}}
            return tasks
        assert (method, path) == ("POST", "/artifacts/filter")
        assert body == {"artifacts": {"flow_run_id": {"any_": [RUN]}, "type": {"any_": ["progress"]}}}
        return reports

    def clock(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def shown(prefect: Prefect, *, terminal: bool) -> tuple[bool, str]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100, highlight=False, color_system=None)
    completed = follow(prefect.call, RUN, STAGES, console, clock=prefect.clock, sleep=prefect.sleep)
    return completed, output.getvalue()


def whole_run() -> Iterator[Answer]:
    """Two seconds of waiting, ingest found, a split, a training of 100 s and 200 steps whose first report comes after 10 s."""
    found = [task("ingest", "Cached", 0.4)]
    yield "Scheduled", [], []
    yield "Pending", [], []
    yield "Running", [task("ingest", "Pending", 0.0)], []
    yield "Running", found, []
    split = [*found, task("split", "Completed", 61.2)]
    for second in range(100):
        reports = [report("train-local", 2 * second, 200)] if second >= 10 else []
        yield "Running", [*split, task("train-local", "Running", float(second))], reports
    yield "Completed", [*split, task("train-local", "Completed", 100.0)], [report("train-local", 200, 200)]


def test_without_a_terminal_a_line_at_each_start_and_end_and_every_20_s() -> None:
    completed, text = shown(Prefect(list(whole_run())), terminal=False)
    assert completed
    assert text.splitlines() == [
        "  waiting for the worker to take the run (0:00 in all)",
        "  the worker starts a process for the run (0:01 in all)",
        "  the run loads the pipeline (0:02 in all)",
        "  stage 1 of 3, ingest: found, verified",
        "  1 of 3 stages are done (0:03 in all)",
        "  stage 2 of 3, split: done 1:01",
        "  stage 3 of 3, train-local: started",
        "  stage 3 of 3: train-local: 40 of 200, 0:20, 1:20 to go",
        "  stage 3 of 3: train-local: 80 of 200, 0:40, 1:00 to go",
        "  stage 3 of 3: train-local: 120 of 200, 1:00, 0:40 to go",
        "  stage 3 of 3: train-local: 160 of 200, 1:20, 0:20 to go",
        "  stage 3 of 3, train-local: done 1:40",
    ]


def test_a_terminal_has_a_bar_per_stage_and_the_run_above_them() -> None:
    until = list(whole_run())[:55]
    completed, text = shown(Prefect([*until, ("Cancelled", *until[-1][1:])]), terminal=True)
    assert not completed
    frames = text.split("train-local (0:54 in all)")
    assert len(frames) > 1, "the line above the bars says stage and time"
    rows = [line.rstrip() for line in frames[1].splitlines()[1:4]]
    assert [row.split("━")[0].strip() for row in rows] == list(STAGES)
    assert rows[0].endswith("found, verified")
    assert rows[1].endswith("done             1:01")
    assert rows[2].endswith("100 of 200       0:50, 0:50 to go")
    assert rows[2].count("━") == 12, "half of a bar of 24"
    assert "  cancelled (0:55 in all)" in text


@pytest.mark.parametrize(
    ("state", "text"),
    [("Late", "no worker has taken the run yet"), ("Cancelling", "saves what it has"), ("Paused", "paused")],
)
def test_what_the_run_waits_for_is_said_and_repeated(state: str, text: str) -> None:
    prefect = Prefect([(state, [], [])] * 45 + [("Crashed", [], [])])
    completed, output = shown(prefect, terminal=False)
    assert not completed
    lines = output.splitlines()
    assert [text in line for line in lines] == [True] * 3
    assert [line.rpartition(" (")[2] for line in lines] == ["0:00 in all)", "0:20 in all)", "0:40 in all)"]


def test_a_failed_stage_is_named() -> None:
    failed = [task("ingest", "Completed", 3.0), task("split", "Failed", 1.0)]
    completed, text = shown(Prefect([("Running", failed, []), ("Failed", failed, [])]), terminal=False)
    assert not completed
    assert "  stage 2 of 3, split: failed 0:01" in text.splitlines()


def test_a_server_silent_for_less_than_a_minute_is_waited_for() -> None:
    done: Answer = ("Completed", [task(name, "Completed", 1.0) for name in STAGES], [])
    assert shown(Prefect([("Pending", [], []), *[None] * 59, done]), terminal=False)[0]
    with pytest.raises(ServiceError, match="no answer"):
        shown(Prefect([("Pending", [], []), *[None] * 70, done]), terminal=False)


def test_the_estimate_is_the_mean_rate_since_the_first_report() -> None:
    stage = StageProgress("train-local", state="running")
    assert stage.seconds_left(0.0) is None
    stage.report(50.0, "100 of 200", 10.0)  # a resumed training: half of it is older than this run
    assert stage.seconds_left(11.0) is None
    stage.report(60.0, "120 of 200", 20.0)  # 10 % in 10 s: 40 s to go, counted down until the next report
    assert stage.seconds_left(20.0) == pytest.approx(40.0)
    assert stage.seconds_left(27.0) == pytest.approx(33.0)
    stage.report(60.0, "120 of 200", 30.0)  # nothing new
    assert stage.seconds_left(30.0) == pytest.approx(30.0)
    assert stage.seconds_left(100.0) == 0.0
    stage.report(10.0, "1 of 10", 110.0)  # a second pass
    assert stage.seconds_left(111.0) is None


def test_stages_that_have_not_started_are_waiting() -> None:
    prefect = Prefect([("Running", [task("ingest", "Completed", 1.0), task("split", "Pending", 0.0)], [])])
    run = RunProgress(prefect.call, RUN, STAGES)
    run.ask(0.0)
    assert [stage.state for stage in run.stages.values()] == ["done", "waiting", "waiting"]
    assert run.current is None
    assert not run.ended
