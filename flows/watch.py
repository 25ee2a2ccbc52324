"""Follow a flow run in the terminal, from Prefect's API: which stage runs, how far it is, how long it still takes.

On a terminal one bar per stage. Elsewhere (a pipe, a CI log) one line at each start and end, and one every 20 s in between.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.services import ServiceError
from tasks.run.printable import markup, printable

Call = Callable[[str, str, Any], Any]  # method, path, body -> decoded JSON; raises ServiceError

_POLL_S = 1.0  # three requests, 16 ms of the server's time
_QUIET_S = 20.0  # in a log: no more than this without a line, and no progress line more often
_PATIENCE_S = 60.0  # a busy machine's server may be silent for a while
_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
# What a flow run waits for before its first stage, by the name of its state, else its type.
_WAITING = {
    "Late": "late: no worker has taken the run yet. A worker does one run at a time; if none is up, `prdit up` starts one",
    "SCHEDULED": "waiting for the worker to take the run",
    "PENDING": "the worker starts a process for the run",
    "RUNNING": "the run loads the pipeline",
    "CANCELLING": "cancelling: the stage saves what it has",
}


@dataclass
class StageProgress:
    """How far one stage is.

    Attributes:
        name: the stage.
        state: `waiting`, `running`, `done`, `found` (in the cache), or `failed`.
        seconds: since its start, as the server counts.
        percent: of its steps, 0 to 100; None until the stage has reported any.
        note: its steps in words, `80 of 160`.
    """

    name: str
    state: str = "waiting"
    seconds: float = 0.0
    percent: float | None = None
    note: str = ""
    _first: tuple[float, float] = field(default=(0.0, 0.0), repr=False)  # time, percent
    _last: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def report(self, percent: float, note: str, now: float) -> None:
        """Record a report of the stage, seen at `now` (s)."""
        self.note = note
        if self.percent is None or percent < self.percent:  # a stage in two passes counts again from zero
            self._first = (now, percent)
        if percent != self.percent:
            self._last = (now, percent)
        self.percent = percent

    def seconds_left(self, now: float) -> float | None:
        """Estimate by the mean rate since the first report, so steps done before a resume do not count. None: unknown."""
        (began, start), (seen, percent) = self._first, self._last
        if self.state != "running" or self.percent is None or percent <= start or seen <= began:
            return None
        rate = (percent - start) / (seen - began)
        return max(0.0, (100.0 - percent) / rate - (now - seen))


class RunProgress:
    """How far a flow run is: asked from Prefect, stage by stage.

    Args:
        call: one request to Prefect's API.
        flow_run_id: the run.
        stages: names of its stages, in order.
    """

    def __init__(self, call: Call, flow_run_id: str, stages: Sequence[str]) -> None:
        self.stages = {name: StageProgress(name) for name in stages}
        self.state_type = "SCHEDULED"
        self.state_name = "Scheduled"
        self._call = call
        self._flow_run_id = flow_run_id

    def ask(self, now: float) -> None:
        """Update from what Prefect reports at `now` (s). Raises: ServiceError: it does not answer."""
        state = self._call("GET", f"/flow_runs/{self._flow_run_id}", None)
        tasks = self._call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [self._flow_run_id]}}})
        wanted = {"flow_run_id": {"any_": [self._flow_run_id]}, "type": {"any_": ["progress"]}}
        reports = {item["task_run_id"]: item for item in self._call("POST", "/artifacts/filter", {"artifacts": wanted})}
        for task in tasks:
            stage = self.stages.get(task["name"].rpartition("-")[0])  # Prefect adds a few digits to a task's name
            if stage is None or task["state_type"] in ("SCHEDULED", "PENDING"):
                continue
            stage.state = _stage_state(task)
            stage.seconds = task["estimated_run_time"]
            if report := reports.get(task["id"]):
                stage.report(float(report["data"]), report["description"] or "", now)
        self.state_type, self.state_name = state["state_type"], state["state_name"]

    @property
    def ended(self) -> bool:
        """Whether the flow run is in a final state."""
        return self.state_type in _FINAL

    @property
    def current(self) -> StageProgress | None:
        """The stage that runs."""
        return next((stage for stage in self.stages.values() if stage.state == "running"), None)

    def overall(self) -> str:
        """One line: which stage of how many, or what the run waits for."""
        names = list(self.stages)
        if self.ended:
            return self.state_name.lower()
        if self.state_type != "CANCELLING" and (current := self.current):
            return f"stage {names.index(current.name) + 1} of {len(names)}: {current.name}"
        if self.state_type == "RUNNING" and (over := sum(s.state != "waiting" for s in self.stages.values())):
            return f"{over} of {len(names)} stages are done"
        return _WAITING.get(self.state_name) or _WAITING.get(self.state_type) or self.state_name.lower()


def _stage_state(task: dict[str, Any]) -> str:
    if task["state_type"] == "COMPLETED":
        return "found" if task["state_name"] == "Cached" else "done"
    return "failed" if task["state_type"] in _FINAL else "running"


def follow(
    call: Call,
    flow_run_id: str,
    stages: Sequence[str],
    console: Console,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Show a flow run's progress until it ends.

    Args:
        call: one request to Prefect's API.
        flow_run_id: the run.
        stages: names of its stages, in order.
        console: where to; bars where it is a terminal, else lines.
        clock, sleep: of the process; replaced in tests.
    Returns: whether the run completed.
    Raises: ServiceError: Prefect has not answered for a minute.
    """
    run = RunProgress(call, flow_run_id, stages)
    answered = clock()
    with _bars(run, console, clock) if console.is_terminal else _lines(run, console, clock) as show:
        while True:
            try:
                run.ask(clock())
                answered = clock()
            except ServiceError:
                if clock() - answered > _PATIENCE_S:
                    raise
            show()
            if run.ended:
                return run.state_type == "COMPLETED"
            sleep(_POLL_S)


@contextlib.contextmanager
def _bars(run: RunProgress, console: Console, clock: Callable[[], float]) -> Iterator[Callable[[], None]]:
    """A line on the run and a bar per stage, drawn in place."""
    began = clock()

    def table() -> Padding:
        rows = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for width in (12, 24, 15, 10):
            rows.add_column(min_width=width)
        for stage in run.stages.values():
            style = {"waiting": "dim", "failed": "red"}.get(stage.state, "")
            over = stage.state in ("done", "found")
            pulse = stage.state == "running" and not stage.percent
            bar = ProgressBar(total=100, completed=100 if over else stage.percent or 0, width=24, pulse=pulse)
            rows.add_row(Text(stage.name, style), bar, Text(printable(_how_far(stage)), style), _times(stage, clock()))
        line = Text(f"{printable(run.overall())} ({_clock(clock() - began)} in all)", "bold")
        return Padding(Group(line, rows), (0, 0, 0, 2), expand=False)  # at full width the echo of Ctrl-C would wrap

    with Live(get_renderable=table, console=console, refresh_per_second=4) as live:
        yield live.refresh


@contextlib.contextmanager
def _lines(run: RunProgress, console: Console, clock: Callable[[], float]) -> Iterator[Callable[[], None]]:
    """A line at every start and end, and one every 20 s in between."""
    began = clock()
    seen = dict.fromkeys(run.stages, "waiting")
    last: dict[str, Any] = {"waiting": "", "time": clock()}

    def say(text: str) -> None:
        last["time"] = clock()
        console.print(f"  {markup(text)}", soft_wrap=True)

    def show() -> None:
        for number, stage in enumerate(run.stages.values(), 1):
            if stage.state != seen[stage.name]:
                seen[stage.name] = stage.state
                what = "started" if stage.state == "running" else f"{_how_far(stage)} {_times(stage, clock())}".rstrip()
                say(f"stage {number} of {len(seen)}, {stage.name}: {what}")
        overdue = clock() - last["time"] >= _QUIET_S
        current = run.current
        if current is None and not run.ended and (overdue or run.overall() != last["waiting"]):
            last["waiting"] = run.overall()
            say(f"{run.overall()} ({_clock(clock() - began)} in all)")
        elif current is not None and overdue:
            say(f"{run.overall()}: {_how_far(current)}, {_times(current, clock())}")

    yield show


def _how_far(stage: StageProgress) -> str:
    words = {"waiting": "waiting", "done": "done", "found": "found, verified", "failed": "failed"}
    return words.get(stage.state) or stage.note or "starting"


def _times(stage: StageProgress, now: float) -> str:
    if stage.state in ("waiting", "found"):
        return ""
    left = stage.seconds_left(now)
    return _clock(stage.seconds) + ("" if left is None else f", {_clock(left)} to go")


def _clock(seconds: float) -> str:
    """`m:ss`, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
