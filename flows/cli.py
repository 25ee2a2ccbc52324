"""The command line `prdit`. Imports of heavy libraries wait until a command needs them."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.average_command import ema
from flows.console import (
    Config,
    Json,
    Set,
    Store,
    Workdir,
    clear_errors,
    example,
    find_ref,
    given_path,
    load_settings,
    overrides,
    run_context,
    show_outcome,
    show_result,
)
from flows.convert_commands import register as register_convert_commands
from flows.plan_command import plan

app = typer.Typer(
    name="prdit",
    help="Train, sample and evaluate PRDiT on chest CT. Research use only, not a medical device.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train one stage.", no_args_is_help=True)
app.add_typer(train_app, name="train")
register_convert_commands(app)


@app.command("demo-data", epilog=example("prdit demo-data .prdit/demo-data --patients 10"))
def demo_data(
    directory: Annotated[Path, typer.Argument(help="Folder to write the DICOM series into.")],
    patients: Annotated[int, typer.Option(min=2, help="Number of synthetic patients.")] = 8,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 7,
    small: Annotated[bool, typer.Option("--small", help="Tiny volumes, for tests.")] = False,
    as_json: Json = False,
) -> None:
    """Write synthetic chest phantoms as real DICOM series, one of them deliberately broken."""
    with clear_errors():
        from storage.phantom import write_demo_data
        from tasks.progress import show_progress

        with show_progress("demo data") as progress:
            series = write_demo_data(directory, num_patients=patients, seed=seed, small=small, progress=progress)
        show_result(
            {"directory": str(directory), "series": series},
            as_json,
            lambda: f"{len(series)} DICOM series of {patients} synthetic patients in {directory}",
        )


@app.command(epilog=example("prdit ingest /data/ct --store .prdit/store"))
def ingest(
    source: Annotated[Path, typer.Argument(help="Folder with DICOM series; opened read-only.", parser=given_path)],
    store: Store = None,
    config: Config = "small",
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Bring scans into a volume store: Hounsfield units, one grid, a verdict for every series.

    Exit code 0 when the store has usable volumes of the source, 1 when nothing is usable.
    """
    with clear_errors():
        loaded = load_settings(config, settings, source=source, store=store)
        from tasks.ingest.run import ingest as run_ingest
        from tasks.progress import show_progress

        with show_progress("ingest") as progress:
            report = run_ingest(source, Path(loaded.store), loaded.ingest, progress=progress)
        value = report.model_dump(mode="json")
        show_result(value, as_json, lambda: _verdict_text(value))
        if not (report.committed or report.unchanged):
            typer.secho(f"error: nothing usable in {source}; every item has its reason above", fg="red", err=True)
            raise typer.Exit(1)


def _verdict_text(report: dict[str, Any]) -> str:
    lines = [f"store {report['store']} ({report['fingerprint']})"]
    for verdict in ("committed", "unchanged", "skipped", "quarantined"):
        lines.append(f"{verdict}: {len(report[verdict])}")
        if verdict in ("skipped", "quarantined"):
            lines += [
                f"  {e.get('series_uid') or e.get('path')}: {e['reason']}: {e['message']}" for e in report[verdict]
            ]
    return "\n".join(lines)


@train_app.command("local", epilog=example("prdit train local --config small --store .prdit/store"))
def train_local(
    store: Store = None,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Stage 1: the local denoiser. Splits the store by patient first."""
    _train("local", config, settings, store, workdir, as_json)


@train_app.command("global", epilog=example("prdit train global --config small --store .prdit/store"))
def train_global(
    store: Store = None,
    local: Annotated[
        str | None, typer.Option(help="Stage-1 checkpoint: directory or reference; default: train (or find) it first.")
    ] = None,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Stage 2: the global refiner on a frozen local denoiser."""
    _train("global", config, settings, store, workdir, as_json, local)


@train_app.command(
    "refiner", epilog=example("prdit train refiner --config small --base .prdit/work/train-global/<key>")
)
def train_refiner(
    store: Store = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint of stage 2, or of a refiner (chained), to refine: directory or reference; default: train (or find) it."
        ),
    ] = None,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Stage 3: a refining head one pyramid level above a frozen model (64 to 128, 128 to 256)."""
    _train("refiner", config, settings, store, workdir, as_json, base)


def _train(
    last: str,
    config: str,
    settings: list[str] | None,
    store: Path | None,
    workdir: Path | None,
    as_json: bool,
    below: str | None = None,
) -> None:
    """Train up to a stage, each on what the one before it left, or the last one alone on a given checkpoint."""
    with clear_errors():
        loaded = load_settings(config, settings, store=store, workdir=workdir)
        from storage.artifacts import verify_artifact
        from tasks.ingest.stage import store_ref
        from tasks.progress import show_progress
        from tasks.split.stage import split_stage
        from tasks.train.stage import train

        context = run_context(loaded)
        volumes = store_ref(Path(loaded.store), loaded.ingest)
        base = find_ref(below) if below else None
        if base is not None:
            verify_artifact(base)
        split = split_stage(volumes, loaded.split, context).ref
        stages = {"local": loaded.train_local, "global": loaded.train_global, "refiner": loaded.train_refiner}
        chain = list(stages)[: list(stages).index(last) + 1]
        for stage in chain if base is None else chain[-1:]:
            with show_progress(f"train {stage}") as progress:
                outcome = train(volumes, split, stages[stage], context, progress, below=base)
            base = outcome.ref
        show_outcome(outcome, as_json)


@app.command(epilog=example("prdit sample .prdit/work/train-global/<key> --set sample.num_volumes=16"))
def sample(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint of stage 2 or 3: its directory, or a reference as JSON.")
    ],
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Draw CT volumes in Hounsfield units (and NIfTI) from a trained model."""
    with clear_errors():
        loaded = load_settings(config, settings, workdir=workdir)
        from storage.artifacts import verify_artifact
        from tasks.progress import show_progress
        from tasks.sample.stage import sample_stage

        ref = find_ref(checkpoint)
        verify_artifact(ref)
        with show_progress("sample") as progress:
            show_outcome(sample_stage(ref, loaded.sample, run_context(loaded), progress), as_json)


app.command(epilog=example("prdit plan --preset B/12/4 --size 128 --batch 8"))(plan)
app.command(epilog=example("prdit ema .prdit/work/train-global/<key> --sigma-rel 0.15"))(ema)


@app.command(epilog=example("prdit evaluate .prdit/work/sample/<key>"))
def evaluate(
    samples: Annotated[str, typer.Argument(help="Samples: their directory, or a reference as JSON.")],
    store: Annotated[
        Path | None, typer.Option(help="Volume store to compare with; default: the one the model was trained on.")
    ] = None,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Measure samples against the store they were trained on, or another one; writes metrics.json and report.html."""
    with clear_errors():
        loaded = load_settings(config, settings, store=store, workdir=workdir)
        from storage.artifacts import input_ref, verify_artifact
        from tasks.evaluate.stage import evaluate_stage
        from tasks.progress import show_progress

        ref = find_ref(samples)
        if ref.kind != "samples":
            raise ValueError(f"evaluate needs samples, got a {ref.kind} at {ref.uri}. Run `prdit sample` on it first.")
        verify_artifact(ref)
        volumes, split = _real_side(input_ref(ref, "checkpoint"), loaded, given=store is not None)
        with show_progress("evaluate") as progress:
            show_outcome(evaluate_stage(ref, volumes, split, loaded.evaluate, run_context(loaded), progress), as_json)


def _real_side(checkpoint: Any, loaded: Any, *, given: bool) -> tuple[Any, Any]:
    """Store and split that samples of a checkpoint are compared with.

    Args:
        checkpoint: reference of the checkpoint the samples were drawn from.
        loaded: configuration, with the store of `--store`.
        given: whether `--store` was; else it is the store of the training.
    Raises: ValueError: an imported checkpoint, which was trained on none of our stores, and no store given.
    """
    from storage.artifacts import input_ref, load_provenance
    from tasks.ingest.stage import store_ref
    from tasks.split.stage import split_stage

    if given:
        volumes = store_ref(Path(loaded.store), loaded.ingest)
        return volumes, split_stage(volumes, loaded.split, run_context(loaded)).ref
    if "store" not in load_provenance(checkpoint)["inputs"]:
        raise ValueError(
            f"The checkpoint at {checkpoint.uri} was imported, so it names no store of its training. Say which real volumes the "
            "samples are compared with: --store .prdit/store."
        )
    return input_ref(checkpoint, "store"), input_ref(checkpoint, "split")


@app.command(epilog=example("prdit run --config demo --source /data/ct"))
def run(
    config: Config = "small",
    source: Annotated[
        Path | None, typer.Option(help="Folder with DICOM series; default: the store as it is.", parser=given_path)
    ] = None,
    store: Store = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline in this process (Prefect records it where PREFECT_API_URL points)."""
    with clear_errors():
        from flows.config import from_parameters

        paths = {"source": str(source or ""), "store": str(store or "")}
        loaded = from_parameters(config, **paths, overrides=overrides(settings))
        # The temporary server of a run without PREFECT_API_URL takes its time on a busy machine.
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
        from flows.pipeline import full_pipeline

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the training saves, the server goes too
        what = loaded.source or "no new scans"
        typer.secho(f"configuration {config}: {what} -> store {loaded.store}, work in {loaded.workdir}", err=True)

        record = full_pipeline(config, **paths, overrides=overrides(settings))
        show_result(record, as_json, lambda: f"report: {record['report']}\nMLflow run: {record['mlflow_run_id']}")


@app.command(epilog=example("prdit doctor"))
def doctor(as_json: Json = False) -> None:
    """Check versions, devices, servers and disk; each problem comes with its remedy. Exit 1 when something fails."""
    with clear_errors():
        from flows.doctor import doctor as run_checks

        checks = run_checks()
        value = {"checks": [check.model_dump(mode="json") for check in checks]}
        show_result(value, as_json, lambda: "\n".join(_check_line(check) for check in value["checks"]))
        if any(check["status"] == "fail" for check in value["checks"]):
            raise typer.Exit(1)


def _check_line(check: dict[str, Any]) -> str:
    remedy = f"  -> {check['remedy']}" if check.get("remedy") else ""
    return f"{check['status']:<5} {check['name']}: {check['detail']}{remedy}"


@app.command(epilog=example("prdit up"))
def up(
    state: Annotated[Path, typer.Option(help="State of the services.")] = Path(".prdit/services"), as_json: Json = False
) -> None:
    """Start a local Prefect server, MLflow server and worker (127.0.0.1), and deploy the flows."""
    with clear_errors():
        from flows.services import deploy, mlflow_page, start

        services = start(state)
        deploy(services, Path(__file__).resolve().parents[1])
        value = services.model_dump(mode="json")
        show_result(value, as_json, lambda: f"Prefect: {services.prefect_ui_url}\nMLflow:  {mlflow_page(services)}")


@app.command(epilog=example("prdit down"))
def down(
    state: Annotated[Path, typer.Option(help="State of the services.")] = Path(".prdit/services"), as_json: Json = False
) -> None:
    """Stop the local services that `prdit up` started."""
    with clear_errors():
        from flows.services import stop

        stopped = stop(state)
        show_result({"stopped": stopped}, as_json, lambda: f"stopped {len(stopped)} processes")


@app.command(epilog=example("prdit demo --dicom /data/ct --keep"))
def demo(
    dicom: Annotated[
        Path | None, typer.Option(help="Folder with DICOM series; default: synthetic phantoms.", parser=given_path)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up.")] = False,
    config: Config = "demo",
) -> None:
    """Everything once: servers, deployment, the pipeline, and where to look."""
    with clear_errors():
        from flows.demo import demo as run_demo

        code = run_demo(dicom=dicom, keep=keep, config=config, state_dir=Path(".prdit"))
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `prdit` command."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("prdit").setLevel(logging.INFO)
    app()
