"""The flow `benchmark`: rows of a table, trained, sampled and measured by one protocol.

It may be killed at any point and started again: trainings resume, and every stage that is done is found in the cache.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.benchmark_config import BenchmarkConfig, Entry, entries, load_benchmark
from flows.benchmark_run import BenchmarkRun, Size, check, check_data
from flows.config import merge
from flows.hooks import ATTENDED, DAY_S, attended
from flows.named_files import benchmark_files
from flows.record import tracking_uri
from flows.room import make_room
from storage.documents.benchmark import BenchmarkDocument
from storage.errors import UserError
from storage.tracking import Tracker
from tasks.benchmark.output import FILES, PAGE, as_rows, write
from tasks.run.stage import TRACKING, code_version, git_commit
from tasks.run.task import publish_flow_table

NOTE = (
    "One run of a benchmark. **Child runs**: each row with each sampler and seed, with its stages. **Metrics**: "
    "`<row>/<sampler>/<figure>`, the seed is the step. **Artifacts**: `compare.html`, the table as CSV and LaTeX."
)
BenchmarkChoice = Annotated[str, Field(json_schema_extra={"enum": list(benchmark_files())})]
logger = logging.getLogger("prdit.benchmark")


class BenchmarkError(UserError, RuntimeError):
    """The table is written, and some of its rows have failed."""


@flow(name="benchmark", timeout_seconds=60 * DAY_S, **ATTENDED)
def benchmark(
    configuration: BenchmarkChoice = "benchmark/tiny",
    source: str = "",
    store: str = "",
    overrides: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
    only: str = "",
) -> dict[str, Any]:
    """Train, sample and measure families side by side on the same scans; a table with intervals over seeds.

    Args:
        configuration: Named benchmark to run. With the fields below unchanged, exactly this benchmark runs.
        source: Folder with scans (DICOM, NIfTI), as the worker sees it; read-only. Empty: the store's newest snapshot, and the
            phantoms of a benchmark that has some.
        store: Folder of the volume store. Empty: the benchmark's (.prdit/benchmark-store).
        overrides: Settings that differ from the benchmark, nested as in flows/benchmarks/*.yaml, for example
            {"budget": {"seconds": 3600}, "rows": {"wdm": null}}. An unknown key is an error.
        only: Rows to run, by name, with commas: several machines share a benchmark so. A run of all rows then finds them done.
    """
    with attended():
        return run_benchmark(benchmark_of(configuration, source, store, overrides), only)


def benchmark_of(
    configuration: str, source: str = "", store: str = "", overrides: dict[str, Any] | None = None
) -> BenchmarkConfig:
    """The benchmark that the flow's parameters ask for; empty text counts as not given. Raises: ConfigError."""
    paths = {key: value.strip() for key, value in (("source", source), ("store", store)) if value and value.strip()}
    return load_benchmark(configuration, merge(overrides or {}, paths))


def run_benchmark(config: BenchmarkConfig, only: str = "") -> dict[str, Any]:
    """Run a benchmark under one MLflow parent run; where its files are.

    Args:
        config: the benchmark.
        only: names of rows, with commas; empty: all of them.
    Raises:
        ConfigError, InputError, RunnerError, LauncherError: what cannot work, before anything runs.
        BenchmarkError: rows have failed; the others are in the table.
    """
    config = config.with_rows(only)
    found = entries(config)
    sizes = check(config, found)
    make_room(found[0].config)
    workdir = Path(config.workdir).resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(tracking_uri(workdir), config.experiment, workdir / TRACKING, commit=git_commit())
    name = config.base or "benchmark"
    tags = {"prdit.code_version": code_version(), "prdit.benchmark": name, "prdit.benchmark_digest": config.digest()}
    if flow_run.get_id():
        tags["prefect.flow_run_id"] = str(flow_run.get_id())
    parameters = {
        "benchmark": name,
        "budget": str(config.budget),
        "seeds": config.seeds,
        "num_volumes": config.num_volumes,
    }
    parent = tracker.start_run(
        flow_run.get_name() or name, parent=None, source="benchmark/compare", tags=tags, params=parameters, note=NOTE
    )
    run = BenchmarkRun(config, found, sizes, tracker, parent, tags)
    try:
        result = _carried_out(run, found)
    except BaseException as error:
        tracker.set_tags(parent, {"prdit.error": type(error).__name__})
        tracker.end_run(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        tracker.flush(stopped=not isinstance(error, Exception))
        raise
    tracker.end_run(parent, "FAILED" if run.failed else "FINISHED")
    tracker.flush()
    result["mlflow_run_id"] = tracker.mlflow_id(parent)
    if run.failed:
        rows = ", ".join(f"{row} ({sampler}, seed {seed}): {why}" for (row, sampler, seed), why in run.failed.items())
        raise BenchmarkError(
            f"{len(run.failed)} of {len(run.failed) + len(run.results)} results are missing: {rows}. The log says why; the table "
            f"of the others: {result['page']}. Started again, only what is missing runs."
        )
    return result


def _carried_out(run: BenchmarkRun, found: list[Entry]) -> dict[str, Any]:
    given, made = run.data()
    check_data(found, given["split"])
    folder = run.folder(given)
    for number, entry in enumerate(found, 1):
        logger.info("%s: %d of %d", entry, number, len(found))
        run.row(entry, given, made)
        document = run.document(given)
        write(document, folder)  # the table as far as it is, should the next row take days
        _publish(document, folder)
    for name in FILES:
        run.tracker.log_file(run.parent, folder / name)
    return {
        "page": str(folder / PAGE),
        "folder": str(folder),
        "rows": len(run.config.rows),
        "results": len(run.results),
        "failed": {" ".join(map(str, place)): why for place, why in run.failed.items()},
    }


def _publish(document: BenchmarkDocument, folder: Path) -> None:
    """Show the table as far as it is on the flow run's page."""
    page = f"{folder.parent.name}/{folder.name}/{PAGE}"
    about = f"{document.title}. Budget: {document.budget}. Means over seeds; more is in {page} of the working folder."
    publish_flow_table("benchmark", as_rows(document), about)


def foreseen(config: BenchmarkConfig, only: str = "") -> tuple[list[Entry], dict[str, Size]]:
    """What a benchmark would run, checked as far as it can be without data; arguments as of `run_benchmark`."""
    config = config.with_rows(only)
    found = entries(config)
    return found, check(config, found)
