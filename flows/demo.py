"""The demo: servers up, deployment registered, the whole pipeline run through it, and where to look afterwards.

Layout below the state directory (`.prdit`): `demo-data/` (phantom DICOM), `services/`, and for the phantom `store/` and
`work/`; another folder of scans gets a store and a work directory of its own, so that phantoms never mix with patients.
"""

import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows import services as local
from flows.memory import MIB, PeakMemory
from storage.files import read_json, sha256_file, write_json_atomic, write_text_atomic

DEPLOYMENT = "prdit/full-pipeline"
_FLOW_RUN_ID = re.compile(r"UUID:\s*([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_CANCEL_TIMEOUT_S = 30.0
# Events Prefect streams by the hundred while a stage works; its page shows them better.
_NOISE = re.compile(r"prefect\.(flow-run\.heartbeat|artifact(-collection)?\.)")


def demo(*, dicom: Path | None, keep: bool, config: str = "demo", state_dir: Path) -> int:
    """Run the pipeline on a phantom or a folder of scans through a real Prefect server, and say where the result is.

    Args:
        dicom: folder with DICOM series, opened read-only; None for the synthetic phantom, written once.
        keep: leave the services up.
        config: name of a configuration of `flows/configs/`.
        state_dir: where everything goes.
    Returns: 0 when the pipeline completed, 1 when it did not, 130 when interrupted.
    """
    console = Console(highlight=False, soft_wrap=True)
    state_dir = state_dir.resolve()
    if dicom is not None and not dicom.is_dir():
        console.print(f"[red]{escape(str(dicom))} is not a folder.[/] Give the folder that holds the DICOM series.")
        return 1
    began = time.monotonic()
    already_up = local.running(state_dir / "services") is not None
    stop_at_end = not (keep or already_up)
    try:
        with _sigterm_as_interrupt(), PeakMemory() as memory:
            parameters = _parameters(dicom, config, state_dir, console)
            _heading(console, "Services")
            services = local.start(state_dir / "services", log=lambda line: console.print(f"  {escape(line)}"))
            memory.watch(item.pid for item in services.processes)
            local.deploy(services, _project_dir())
            console.print(f"  deployed; watch the run at {services.prefect_ui_url}")
            _heading(console, f"Pipeline ({DEPLOYMENT}, configuration {config!r})")
            flow_run_id, completed = _run(services, parameters, console)
        record = _record(Path(parameters["workdir"]), flow_run_id)
        _heading(console, "Result")
        _show_result(console, services, record, flow_run_id, completed=completed)
        _show_cost(console, time.monotonic() - began, memory)
        _show_ending(console, services, up=not stop_at_end)
        return 0 if completed else 1
    except KeyboardInterrupt:
        stop_at_end = not already_up
        console.print("[yellow]Interrupted:[/] " + ("stopping the servers." if stop_at_end else "the servers stay up."))
        return 130
    except local.ServiceError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return 1
    finally:
        if stop_at_end:
            local.stop(state_dir / "services")


def _project_dir() -> Path:
    """The checkout: where prefect.yaml is."""
    return Path(__file__).resolve().parents[1]


def _parameters(dicom: Path | None, config: str, state_dir: Path, console: Console) -> dict[str, Any]:
    """The flow's `config`: a named configuration with this demo's paths on top."""
    _heading(console, "Input")
    if dicom is None:
        source, suffix = _phantom(state_dir / "demo-data", console), ""
        ingest = {"patient_key_file": str(_phantom_key(state_dir / "demo-data.patient-key"))}
    else:
        source, ingest = dicom.resolve(), {}
        suffix = f"-{source.name}-{hashlib.sha256(str(source).encode()).hexdigest()[:8]}"
        console.print(f"  scans: {escape(str(source))} (opened read-only)")
    return {
        "base": config,
        "source": str(source),
        "store": str(state_dir / f"store{suffix}"),
        "workdir": str(state_dir / f"work{suffix}"),
        **({"ingest": ingest} if ingest else {}),
    }


def _phantom_key(path: Path) -> Path:
    """A fixed patient key: synthetic patients have no secret, and the same demo should split the same on every machine."""
    write_text_atomic(path, "00" * 32 + "\n")
    return path


def _phantom(directory: Path, console: Console) -> Path:
    """Write the phantom's DICOM series, unless the same generator has written them before."""
    from storage import phantom

    marker = directory.with_name(directory.name + ".json")  # beside it: the folder holds nothing but DICOM
    generator = {"generator": sha256_file(Path(phantom.__file__))}
    with contextlib.suppress(OSError, ValueError):
        if directory.is_dir() and read_json(marker) == generator:
            console.print(f"  synthetic phantom: {escape(str(directory))} (written before)")
            return directory
    marker.unlink(missing_ok=True)
    series = phantom.write_demo_data(directory)
    write_json_atomic(marker, generator)
    console.print(f"  synthetic phantom: {len(series)} DICOM series written to {escape(str(directory))}")
    return directory


def _run(services: local.Services, parameters: dict[str, Any], console: Console) -> tuple[str | None, bool]:
    """Run the deployment and stream what Prefect prints. Returns the flow run's id and whether it completed."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deployment", "run", DEPLOYMENT, "--watch"]
    command += ["--param", f"config={json.dumps(parameters)}"]
    console.print(f"  prefect deployment run {DEPLOYMENT} --watch --param config='{escape(json.dumps(parameters))}'\n")
    variables = {**local.child_environment(services), "COLUMNS": "200"}
    child = subprocess.Popen(  # a session of its own: Ctrl-C reaches us alone, and we cancel the run before we stop the servers
        command,
        env=variables,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    flow_run_id: str | None = None
    try:
        for line in child.stdout or ():
            if flow_run_id is None and (match := _FLOW_RUN_ID.search(line)):
                flow_run_id = match.group(1)
            if line.strip() and not _NOISE.search(line):
                console.print("  " + escape(line.rstrip()))
        return flow_run_id, child.wait() == 0
    except KeyboardInterrupt:
        console.print("\n[yellow]Interrupted:[/] cancelling the flow run.")
        if flow_run_id:
            _cancel(services, flow_run_id)
        raise
    finally:
        child.terminate()
        child.wait()


def _cancel(services: local.Services, flow_run_id: str) -> None:
    """Ask Prefect to cancel a run and wait until it has ended: the training saves its state, and no run stays `Running`."""
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    with contextlib.suppress(local.ServiceError):
        local.call_api(services, "POST", f"/flow_runs/{flow_run_id}/set_state", state)
        deadline = time.monotonic() + _CANCEL_TIMEOUT_S
        while time.monotonic() < deadline:
            if local.call_api(services, "GET", f"/flow_runs/{flow_run_id}")["state_type"] != "CANCELLING":
                return
            time.sleep(0.5)


def _record(workdir: Path, flow_run_id: str | None) -> dict[str, Any] | None:
    """What this flow run recorded of itself, or None if it ended before it could."""
    with contextlib.suppress(OSError, ValueError):
        record: dict[str, Any] = read_json(workdir / "runs" / "latest.json")
        if flow_run_id is not None and record.get("prefect_flow_run_id") == flow_run_id:
            return record
    return None


def _show_result(
    console: Console,
    services: local.Services,
    record: dict[str, Any] | None,
    flow_run_id: str | None,
    *,
    completed: bool,
) -> None:
    for name, stage in (record or {}).get("stages", {}).items():
        console.print(f"  {name:<14}{'found, verified' if stage['cached'] else format(stage['seconds'], '.1f') + ' s'}")
    if not completed:
        reason = (record or {}).get("error") or _last_errors(services, flow_run_id) or "the flow run did not start"
        console.print(f"  [red]FAILED[/]: {escape(reason)}")
        console.print(f"  logs:     {escape(str(services.state_dir / 'logs'))} and the Prefect page below")
    if record and record.get("report"):
        console.print(f"  [bold]report:   {escape(record['report'])}[/]")
    console.print(f"  Prefect:  {_prefect_page(services, flow_run_id)}")
    console.print(f"  MLflow:   {_mlflow_page(services, record)}")


def _prefect_page(services: local.Services, flow_run_id: str | None) -> str:
    return f"{services.prefect_ui_url}/runs/flow-run/{flow_run_id}" if flow_run_id else services.prefect_ui_url


def _mlflow_page(services: local.Services, record: dict[str, Any] | None) -> str:
    if not record or not record.get("mlflow_run_id"):
        return services.mlflow_url
    return f"{services.mlflow_url}/#/experiments/{record['mlflow_experiment_id']}/runs/{record['mlflow_run_id']}"


def _last_errors(services: local.Services, flow_run_id: str | None) -> str:
    """Why a flow run ended: its state's message, else the last error in its log (a traceback shortened to its end)."""
    if flow_run_id is None:
        return ""
    query = {
        "logs": {"flow_run_id": {"any_": [flow_run_id]}, "level": {"ge_": 40}},
        "sort": "TIMESTAMP_DESC",
        "limit": 1,
    }
    try:
        state = local.call_api(services, "GET", f"/flow_runs/{flow_run_id}")["state"]
        found = local.call_api(services, "POST", "/logs/filter", query)
    except local.ServiceError as error:
        return str(error)
    message = state.get("message") or (found[0]["message"] if found else f"the flow run ended as {state['name']}")
    return "\n".join(message.strip().splitlines()[-12:])


def _show_cost(console: Console, seconds: float, memory: PeakMemory) -> None:
    console.print(f"  time:     {seconds / 60:.1f} min")
    parts = ", ".join(f"{name} {size / MIB:.0f}" for name, size in list(memory.breakdown.items())[:6])
    console.print(
        f"  memory:   {memory.peak_bytes / MIB:.0f} MiB at the peak of the whole process tree (summed PSS, "
        f"{memory.num_samples} samples): {escape(parts)}"
    )


def _show_ending(console: Console, services: local.Services, *, up: bool) -> None:
    if up:
        console.print(
            f"\nThe servers stay up ({services.prefect_ui_url}, {services.mlflow_url}); make down stops them."
        )
    else:
        console.print("\nStopping the servers; KEEP=1 leaves them up, make up starts them again with the same history.")


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold cyan]{escape(text)}[/]")


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: run cancelled, servers stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
