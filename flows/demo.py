"""The demo: servers up, deployment registered, the whole pipeline run through it, and where to look afterwards.

Layout below the state directory (`.prdit`): `demo-data/` (phantom DICOM), `services/`, and for the phantom `store/` and
`work/`; another folder of scans gets a store and a work directory of its own, so that phantoms never mix with patients.
"""

import contextlib
import hashlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from flows import services as local
from flows.config import as_parameters, from_parameters, merge
from flows.memory import MIB, PeakMemory
from flows.stages import rows
from flows.watch import follow
from storage.documents.run_record import RunDocument
from storage.errors import StorageError
from storage.files import read_json, sha256_file, write_json_atomic, write_text_atomic
from tasks.run.printable import markup
from tasks.run.progress import show_progress

DEPLOYMENT = "prdit/full-pipeline"
_FLOW_RUN_ID = re.compile(r"UUID:\s*([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_CANCEL_TIMEOUT_S = 30.0


def demo(*, dicom: Path | None, keep: bool, config: str = "demo", state_dir: Path) -> int:
    """Run the pipeline on a phantom or a folder of scans through a real Prefect server, and say where the result is.

    Args:
        dicom: folder with DICOM series, opened read-only; None for the synthetic phantom, written once.
        keep: leave the services up.
        config: name of a configuration of `flows/configs/`, or a YAML file with a `base`.
        state_dir: where everything goes.
    Raises: ConfigError: the configuration cannot be used.
    Returns: 0 when the pipeline completed, 1 when it did not, 130 when interrupted.
    """
    console = Console(highlight=False, soft_wrap=True)
    state_dir = state_dir.resolve()
    if dicom is not None and not dicom.is_dir():
        console.print(f"[red]{markup(str(dicom))} is not a folder.[/] Give the folder that holds the DICOM series.")
        return 1
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C: the run is cancelled, the servers are stopped
    began = time.monotonic()
    already_up = local.running(state_dir / "services") is not None
    stop_at_end = not (keep or already_up)
    try:
        with PeakMemory() as memory:
            parameters = _parameters(dicom, config, state_dir)
            settings = from_parameters(**parameters)  # refused here, before anything is written or started
            _heading(console, "Input")
            if dicom is None:
                _phantom(Path(parameters["source"]), Path(str(settings.ingest.patient_key_file)), console)
            else:
                console.print(f"  scans: {markup(parameters['source'])} (opened read-only)")
            _heading(console, "Services")
            console.print("  starting a Prefect server, an MLflow server and a worker, where they are not up")
            services = local.start(state_dir / "services")
            memory.watch(local.pids(services).values())
            console.print(f"  Prefect {services.prefect_ui_url}, MLflow {services.mlflow_url}")
            console.print("  registering the deployments")
            local.deploy(services, Path.cwd())
            _heading(console, f"Pipeline ({DEPLOYMENT}, configuration {config!r})")
            flow_run_id = _submit(services, parameters, console)
            completed = _follow(services, flow_run_id, tuple(rows(settings)), console)
        record = _record(Path(settings.workdir), flow_run_id)
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
        console.print(f"[red]{markup(str(error))}[/]")
        return 1
    finally:
        if stop_at_end:
            local.stop(state_dir / "services")


def _parameters(dicom: Path | None, config: str, state_dir: Path) -> dict[str, Any]:
    """The flow's parameters: a configuration with this demo's paths on top."""
    configuration, overrides = as_parameters(config)
    overrides = {key: value for key, value in overrides.items() if key not in ("source", "store")}
    if dicom is None:
        source, suffix = state_dir / "demo-data", ""
        overrides = merge(overrides, {"ingest": {"patient_key_file": str(source.with_suffix(".patient-key"))}})
    else:
        source = dicom.resolve()
        suffix = f"-{source.name}-{hashlib.sha256(str(source).encode()).hexdigest()[:8]}"
    return {
        "configuration": configuration,
        "source": str(source),
        "store": str(state_dir / f"store{suffix}"),
        "overrides": overrides | {"workdir": str(state_dir / f"work{suffix}")},
    }


def _phantom(directory: Path, key_file: Path, console: Console) -> None:
    """Write the phantom's DICOM series, unless the same generator has written them before, and its patient key.

    The key is fixed: synthetic patients have no secret, and the same demo should split the same on every machine.
    """
    from storage.phantom import anatomy, series

    write_text_atomic(key_file, "00" * 32 + "\n")
    marker = directory.with_name(directory.name + ".json")  # beside it: the folder holds nothing but DICOM
    generator = {"generator": [sha256_file(Path(anatomy.__file__)), sha256_file(Path(series.__file__))]}
    with contextlib.suppress(OSError, ValueError):
        if directory.is_dir() and read_json(marker) == generator:
            console.print(f"  synthetic phantom: {markup(str(directory))} (written before)")
            return
    marker.unlink(missing_ok=True)
    with show_progress("synthetic phantom") as progress:
        written = series.write_demo_data(directory, progress=progress)
    write_json_atomic(marker, generator)
    console.print(f"  synthetic phantom: {len(written)} DICOM series written to {markup(str(directory))}")


def _submit(services: local.Services, parameters: dict[str, Any], console: Console) -> str:
    """Start the deployment as a user would, with the command shown, and return the flow run's id.

    Raises: ServiceError: Prefect refused; the message holds its output.
    """
    command = ["prefect", "deployment", "run", DEPLOYMENT]
    for name, value in parameters.items():
        command += ["--param", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    console.print(f"  PREFECT_API_URL={services.prefect_api_url} {markup(shlex.join(command))}\n")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *command[1:]],
        env={**local.child_environment(services), "COLUMNS": "200"},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours to handle
        check=False,
    )
    match = _FLOW_RUN_ID.search(done.stdout)
    if done.returncode != 0 or match is None:
        raise local.ServiceError(f"`prefect deployment run` ended with exit code {done.returncode}:\n{done.stdout}")
    return match.group(1)


def _follow(services: local.Services, flow_run_id: str, stages: tuple[str, ...], console: Console) -> bool:
    """Show the run's progress to its end; Ctrl-C cancels it. Returns whether it completed."""
    try:
        return follow(partial(local.call_api, services), flow_run_id, stages, console)
    except KeyboardInterrupt:
        console.print("\n[yellow]Interrupted:[/] cancelling the flow run.")
        _cancel(services, flow_run_id)
        raise


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


def _record(workdir: Path, flow_run_id: str) -> RunDocument | None:
    """What this flow run recorded of itself, or None if it ended before it could."""
    with contextlib.suppress(StorageError):
        record = RunDocument.latest(workdir / "runs")
        if record.prefect_flow_run_id == flow_run_id:
            return record
    return None


def _show_result(
    console: Console,
    services: local.Services,
    record: RunDocument | None,
    flow_run_id: str,
    *,
    completed: bool,
) -> None:
    for name, stage in record.stages.items() if record else ():
        console.print(f"  {name:<14}{'found, verified' if stage.cached else format(stage.seconds, '.1f') + ' s'}")
    if not completed:
        reason = (record.error if record else None) or _last_errors(services, flow_run_id)
        console.print(f"  [red]FAILED[/]: {markup(reason)}")
        console.print(f"  logs:     {markup(str(services.state_dir / 'logs'))} and the Prefect page below")
    if record and "evaluate" in record.stages and (line := _samples_line(record.stages["evaluate"].figures)):
        console.print(f"  samples:  {line}")
    if record and record.report:
        console.print(f"  [bold]report:   {markup(record.report)}[/]")
    console.print(f"  Prefect:  {services.prefect_ui_url}/runs/flow-run/{flow_run_id}")
    console.print(f"  MLflow:   {_mlflow_page(services, record)}")


def _samples_line(figures: dict[str, float]) -> str:
    """What the evaluation says of the samples without any feature network (docs/anatomy.md), or an empty text."""
    parts = []
    if not figures:
        return ""
    if (share := figures.get("evaluate/anatomy_pass_share")) is None:
        parts.append("anatomy left out (the report says why)")
    else:
        real = figures["evaluate/anatomy_pass_share_real"]
        parts.append(f"{share:.0%} could be a chest ({real:.0%} of the real volumes)")
    if (distance := figures.get("evaluate/nearest_training_distance")) is not None:
        held_out = figures.get("evaluate/nearest_training_distance_held_out")
        beside = "" if held_out is None else f" (held-out volumes: {held_out:.0f})"
        parts.append(f"{distance:.0f} HU from the nearest training volume{beside}")
    return ", ".join(parts)


def _mlflow_page(services: local.Services, record: RunDocument | None) -> str:
    if not record or not record.mlflow_run_id:
        return local.mlflow_page(services)
    return local.mlflow_page(services, record.mlflow_experiment_id, record.mlflow_run_id)


def _last_errors(services: local.Services, flow_run_id: str) -> str:
    """Why a flow run ended: its state's message, else the last error in its log (a traceback shortened to its end)."""
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
        f"{memory.num_samples} samples): {markup(parts)}"
    )


def _show_ending(console: Console, services: local.Services, *, up: bool) -> None:
    if up:
        console.print(
            f"\nThe servers stay up ({services.prefect_ui_url}, {services.mlflow_url}); prdit down (make down) stops them."
        )
    else:
        console.print(
            "\nStopping the servers; --keep (KEEP=1) leaves them up, prdit up (make up) starts them with the same history."
        )


def _heading(console: Console, text: str) -> None:
    console.print(f"\n[bold cyan]{markup(text)}[/]")
