"""The command line `prdit`. Imports of heavy libraries wait until a command needs them."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.average_command import ema
from flows.benchmark_command import EPILOG as BENCHMARK_EPILOG
from flows.benchmark_command import benchmark
from flows.compare_command import compare
from flows.console import (
    Config,
    Json,
    Set,
    Store,
    Workdir,
    clear_errors,
    example,
    found_artifact,
    given_path,
    load_settings,
    overrides,
    run_context,
    run_stages,
    show_outcome,
    show_result,
    stop_as_ctrl_c,
    wait_for_server,
)
from flows.convert_commands import register as register_convert_commands
from flows.export_commands import register as register_export_commands
from flows.faults import EXIT_USER_ERROR, called, say_error, without_debug
from flows.fetch_command import register as register_fetch_command
from flows.inbox_commands import register as register_inbox_commands
from flows.maintain_command import maintain
from flows.named_files import SITE_FILE
from flows.patient_commands import register as register_patient_commands
from flows.plan_command import plan
from flows.prune_command import prune
from flows.reconstruct_command import reconstruct
from flows.registry_commands import register as register_model_commands
from flows.reproduce_command import EPILOG as REPRODUCE_EPILOG
from flows.reproduce_command import reproduce
from flows.retrain_command import retrain
from flows.service_commands import register as register_service_commands
from flows.show_command import register as register_show_command
from flows.site_command import site
from flows.status_command import status
from flows.store_commands import register as register_store_commands
from storage.errors import InputError, UserError
from storage.places import as_place
from tasks.run.machine import limit_threads
from tasks.run.printable import log_printable, one_line, printable


class Commands(TyperGroup):
    """The commands; `--debug` may stand before or after their names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--debug` out of the arguments, and remember them for the report of a fault."""
        return super().parse_args(ctx, called(args, list(self.commands)))


app = typer.Typer(
    name="prdit",
    cls=Commands,
    help="Train, sample and evaluate PRDiT on chest CT. Research use only, not a medical device.",
    epilog=(
        "`--debug`, anywhere on the command line, shows the whole traceback of an error. Exit codes: 0 done; 1 it cannot be done "
        "with what was given, or nothing is usable; 2 wrong usage or configuration; 70 a fault of prdit, whose traceback is "
        "kept in `.prdit/errors/`; 130 interrupted."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
register_convert_commands(app)
register_export_commands(app)
register_service_commands(app)
register_store_commands(app)
register_show_command(app)
register_fetch_command(app)
register_inbox_commands(app)
register_patient_commands(app)
register_model_commands(app)


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
        from storage.phantom.series import write_demo_data
        from tasks.run.progress import show_progress

        with show_progress("demo data") as progress:
            series = write_demo_data(directory, num_patients=patients, seed=seed, small=small, progress=progress)
        show_result(
            {"directory": str(directory), "series": series},
            as_json,
            lambda: f"{len(series)} DICOM series of {patients} synthetic patients in {directory}",
        )


@app.command(epilog=example("prdit ingest /data/ct --store .prdit/store"))
def ingest(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with CT (DICOM, NIfTI, NRRD, MetaImage, npz; zip and tar of them); opened read-only.",
            parser=given_path,
        ),
    ],
    store: Store = None,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Check every byte of the store first; write again what is damaged and the source has."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring scans into a volume store: Hounsfield units, one grid, a verdict for every scan; then take a snapshot.

    What was read, with pictures, and every exclusion with its reason is in `<store>.ingests/qc.html`. Exit code 0 when the store
    has usable volumes of the source, whatever else was skipped or quarantined; 1 when nothing is usable, or the source, the store
    or a table in the source cannot be used; 2 wrong usage or configuration. docs/ingestion.md says what to do about each reason.
    """
    with clear_errors():
        loaded = load_settings(config, settings, source=source, store=store, workdir=workdir)
        from flows.verdict_text import verdict_text, without_pictures
        from storage.errors import NothingUsableError
        from tasks.ingest.qc import page_path
        from tasks.ingest.run import last_report
        from tasks.ingest.stage import ingest_stage
        from tasks.run.progress import show_progress

        refused = ""
        try:
            if repair:
                with show_progress("ingest") as progress, run_context(loaded) as context:
                    outcome = ingest_stage(
                        source,
                        as_place(loaded.store),
                        loaded.ingest,
                        context,
                        progress,
                        repair=True,
                        runner=loaded.runner,
                    )
            else:
                outcome = run_stages(loaded, "ingest", {})
        except NothingUsableError as error:
            refused = str(error)
        report = last_report(source, as_place(loaded.store), loaded.ingest, unchanged=not refused and outcome.cached)
        if not refused and not (report.committed or report.unchanged):
            refused = f"nothing usable in {one_line(source)}; every item has its reason in the verdicts"
        page = page_path(as_place(loaded.store))
        value = without_pictures(report.model_dump(mode="json")) | {"counts": report.counts, "qc": str(page)}
        if refused:
            value |= {"error": refused, "exit_code": EXIT_USER_ERROR}
        show_result(value, as_json, lambda: verdict_text(report, page))
        if refused:
            say_error(refused)
            raise typer.Exit(EXIT_USER_ERROR)


@app.command(epilog=example("prdit train global --config small --store .prdit/store"))
def train(
    name: Annotated[
        str,
        typer.Argument(help="Training of the configuration's recipe: local, global or refiner in the published one."),
    ],
    store: Store = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint it starts from: directory, models:/prdit@champion or reference; default: the trainings before it are "
            "run (or found) first."
        ),
    ] = None,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Run one training of a recipe, after those it starts from. Splits the store by patient first."""
    with clear_errors():
        from flows.stages import training_row
        from storage.errors import ConfigError

        loaded = load_settings(config, settings, store=store, workdir=workdir)
        if name not in loaded.recipe:
            raise ConfigError(
                f"{name!r} is not a training of configuration {config!r}, which has {', '.join(loaded.recipe)}."
            )
        if not loaded.recipe[name].enabled:
            switched_on = [*(settings or []), f"recipe.{name}.enabled=true"]
            loaded = load_settings(config, switched_on, store=store, workdir=workdir)
        below, given = loaded.recipe[name].start, {}
        if start is not None:
            if below is None:
                raise ConfigError(
                    f"--start was given, but training {name!r} is trained from scratch (recipe.{name}.start)."
                )
            given[training_row(below)] = found_artifact(start, loaded.workdir)
        show_outcome(run_stages(loaded, training_row(name), given), as_json)


@app.command(epilog=example("prdit sample .prdit/work/train-global/<key> --set sample.num_volumes=16"))
def sample(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Checkpoint of a model of whole volumes: its directory, models:/prdit@champion (or a version: models:/prdit/3), "
            "or a reference as JSON."
        ),
    ],
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Draw CT volumes in Hounsfield units (and NIfTI) from a trained model.

    What was drawn when a run was stopped is kept: the same command goes on. docs/sampling.md: several workers or GPUs, verdicts.
    """
    with clear_errors():
        from flows.stages import training_row

        loaded = load_settings(config, settings, workdir=workdir)
        last = training_row(list(loaded.trainings)[-1])
        show_outcome(run_stages(loaded, "sample", {last: found_artifact(checkpoint, loaded.workdir)}), as_json)


app.command(
    epilog=example("prdit plan --config published/lidc-128 --set recipe.global.settings.preset=B/12/12 --batch 8")
)(plan)
app.command(epilog=example("prdit compare latest 20261129T190214.123456Z"))(compare)
app.command(epilog=BENCHMARK_EPILOG)(benchmark)
app.command(epilog=REPRODUCE_EPILOG)(reproduce)
app.command(epilog=example("prdit retrain --dry-run"))(retrain)
app.command(
    epilog=example("prdit reconstruct .prdit/store --volume ID --model models:/prdit@champion --operator operator.yaml")
)(reconstruct)
app.command(epilog=example("prdit prune --keep-runs 5 --keep-days 30"))(prune)
app.command(epilog=example("prdit site --write"))(site)
app.command(epilog=example("prdit status --html"))(status)
app.command(epilog=example("prdit maintain --no-verify"))(maintain)
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
    """Compare samples with the store their model was trained on, or another one; writes metrics.json and report.html.

    `--set evaluate.extractor=…` sets the feature network, `--set evaluate.metrics.NAME=null` leaves a metric out. docs/report.md.
    """
    with clear_errors():
        loaded = load_settings(config, settings, store=store, workdir=workdir)
        from storage.artifacts import input_ref

        ref = found_artifact(samples, loaded.workdir)
        if ref.kind != "samples":
            raise InputError(f"evaluate needs samples, got a {ref.kind} at {ref.uri}. Run `prdit sample` on it first.")
        given = _real_side(input_ref(ref, "checkpoint"), loaded, given=store is not None)
        show_outcome(run_stages(loaded, "evaluate", {"sample": ref, **given}), as_json)


def _real_side(checkpoint: Any, loaded: Any, *, given: bool) -> dict[str, Any]:
    """Snapshot and split that samples of a checkpoint are compared with, by stage name; without a split: the configuration's.

    Args:
        checkpoint: reference of the checkpoint the samples were drawn from.
        loaded: configuration, with the store of `--store`.
        given: whether `--store` was given; else it is the store of the training.
    Raises:
        InputError: an imported checkpoint, which names no store, and no store given.
        StorageError: there is no such store, or nothing in it.
    """
    from flows.stages import real_volumes
    from storage.artifacts import input_ref, load_provenance

    if given:  # of the checkpoint's voxels, which the stage checks; the configuration's grid is for ingest
        return {"ingest": real_volumes(loaded, any_grid=True)}
    if "snapshot" not in load_provenance(checkpoint).inputs:
        raise InputError(
            f"The checkpoint at {checkpoint.uri} was imported, so it names no store of its training. Say which real volumes the "
            "samples are compared with: --store .prdit/store."
        )
    return {"ingest": input_ref(checkpoint, "snapshot"), "split": input_ref(checkpoint, "split")}


@app.command(epilog=example("prdit run --config demo --source /data/ct"))
def run(
    config: Config = "small",
    source: Annotated[
        Path | None,
        typer.Option(help="Folder with scans (DICOM, NIfTI); default: the store as it is.", parser=given_path),
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
        wait_for_server()
        from flows.pipeline import check_sampling, pipeline

        check_sampling(loaded)  # before the server starts
        stop_as_ctrl_c()
        what = loaded.source or "no new scans"
        typer.secho(
            printable(f"configuration {config}: {what} -> store {loaded.store}, work in {loaded.workdir}"), err=True
        )

        record = pipeline(config, **paths, overrides=overrides(settings))
        run_id = record["mlflow_run_id"] or "not on the server yet; prdit's next start sends it"
        show_result(record, as_json, lambda: f"report: {record['report']}\nMLflow run: {run_id}")


@app.command(epilog=example("prdit doctor --config published/lidc-128 --set launcher.ranks_per_node=8"))
def doctor(
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            help="Named configuration or YAML file whose launcher, runner and work folder are checked, too.",
        ),
    ] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Check versions, devices, servers and disk; each problem comes with its remedy. Exit 1 when something fails."""
    with clear_errors():
        from flows.doctor import doctor as run_checks

        if settings and config is None:
            raise InputError("--set changes settings of a configuration: name one with --config.")
        loaded = None if config is None else load_settings(config, settings)
        checks = run_checks(directory=Path(loaded.workdir) if loaded else None)
        if loaded:
            from flows.doctor_cluster import check_cluster

            checks += check_cluster(loaded)
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
    """Start this folder's services on 127.0.0.1, and deploy the flows; their runs work in this folder.

    They are a Prefect server, an MLflow server, a worker, the watcher of the inbox, the DICOM listener where .prdit/site.yaml has
    one, and a health checker; what dies or no longer answers is started again. docs/operations.md.
    """
    with clear_errors():
        from flows.server_settings import server_settings
        from flows.services import deploy, mlflow_page, start

        services = start(state, home=Path.cwd())
        deploy(services, Path.cwd())
        value = services.model_dump(mode="json")
        pages = f"Prefect: {services.prefect_ui_url}\nMLflow:  {mlflow_page(services)}"
        shell = f"Shell:   export PREFECT_API_URL={services.prefect_api_url}"
        if server_settings().login:
            pages += "\nLogin:   user:password as set; Prefect's page asks for the whole text, a shell needs it too"
            shell += " PREFECT_API_AUTH_STRING=user:password"
        show_result(value, as_json, lambda: f"{pages}\n{shell}")


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
        Path | None,
        typer.Option(help="Folder with scans (DICOM, NIfTI); default: synthetic phantoms.", parser=given_path),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers up.")] = False,
    config: Config = "demo",
) -> None:
    """Run everything once: servers, deployment, pipeline; then say where the results are."""
    with clear_errors():
        from flows.demo import demo as run_demo

        code = run_demo(dicom=dicom, keep=keep, config=config, state_dir=Path(".prdit"))
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `prdit` command."""
    log_printable("%(message)s", short=not without_debug(sys.argv[1:])[1])
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("prdit").setLevel(logging.INFO)
    limit_threads(os.environ)  # before NumPy starts its own
    _log_in()
    app()


def _log_in() -> None:
    """Have the clients of Prefect and MLflow in this process log in as this folder's settings say."""
    if os.environ.get("PRDIT_AUTH") or SITE_FILE.is_file():
        from flows.server_settings import server_settings

        with suppress(UserError):  # the commands that need them say what is wrong with them
            for key, value in server_settings().client_variables().items():
                if key != "PRDIT_AUTH":  # stays what the user set: `prdit site` says whether it overrules the file
                    os.environ.setdefault(key, value)


if __name__ == "__main__":
    main()
