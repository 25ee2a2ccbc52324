"""`prdit benchmark`: what `benchmark/compare` runs, in this process. Heavy libraries are imported where they are needed."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import (
    Json,
    Set,
    Store,
    clear_errors,
    example,
    given_path,
    overrides,
    show_result,
    stop_as_ctrl_c,
    wait_for_server,
)

if TYPE_CHECKING:
    from flows.benchmark_config import BenchmarkConfig, Entry
    from flows.benchmark_run import Size

EPILOG = example("prdit benchmark benchmark/tiny --dry-run") + (
    "\n\n`prdit benchmark benchmark/lidc-128 --source /data/lidc --set budget.seconds=36000`"
)
_WIDTH = 150
_GIB = 2**30


def benchmark(
    configuration: Annotated[
        str, typer.Argument(help="Benchmark by name (benchmark/tiny, benchmark/lidc-128, …) or a YAML file.")
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder with scans; default: the store as it is, and the benchmark's phantoms.", parser=given_path
        ),
    ] = None,
    store: Store = None,
    settings: Set = None,
    only: Annotated[
        str,
        typer.Option(help="Rows to run, by name, with commas: several machines share a benchmark so; default: all."),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the rows and what they cost; nothing is run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train, sample and measure families side by side on the same scans: compare.html, CSV and LaTeX. docs/benchmark.md.

    It may be stopped at any time; the same command goes on. Exit code 1 where rows failed, whose others are in the table.
    """
    with clear_errors():
        texts = {"source": "" if source is None else str(source), "store": "" if store is None else str(store)}
        given = overrides(settings)
        wait_for_server()
        from flows.benchmark import benchmark as run
        from flows.benchmark import benchmark_of, foreseen
        from flows.benchmark_config import entries

        config = benchmark_of(configuration, **texts, overrides=given)
        if dry_run:
            found, sizes = foreseen(config, only)
            show_result(_value(config, found, sizes), as_json, lambda: _text(config, found, sizes))
            return
        entries(config.with_rows(only))  # most mistakes are told before a server starts
        stop_as_ctrl_c()
        result = run(configuration, **texts, overrides=given, only=only)
        show_result(result, as_json, lambda: f"table: {result['page']}\nMLflow run: {result['mlflow_run_id']}")


def _value(config: "BenchmarkConfig", found: "Sequence[Entry]", sizes: "Mapping[str, Size]") -> dict[str, Any]:
    """What would run, as JSON."""
    rows = {
        name: {
            "title": config.rows[name].title,
            "trainings": [each.model_dump(mode="json") for each in size.trainings],
            "samplers": dict(size.sampling),
            "evaluations": dict(size.evaluations),
            "deviations": list(size.deviations),
        }
        for name, size in sizes.items()
    }
    return {
        "digest": config.digest(),
        "budget": str(config.budget),
        "seeds": list(config.seeds),
        "runs": len(found),
        "rows": rows,
    }


def _text(config: "BenchmarkConfig", found: "Sequence[Entry]", sizes: "Mapping[str, Size]") -> str:
    """The same for people."""
    from rich.console import Console
    from rich.table import Table

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False, markup=False)
    view = config.view
    console.print(
        f"{config.title}: {len(sizes)} rows x {len(config.seeds)} seeds of {view.size}³ voxels; budget of each: {config.budget}; "
        f"{config.num_volumes} volumes of each sampler"
    )
    if config.budget.seconds is not None:
        hours = len(found) * config.budget.seconds / 3600
        console.print(
            f"{hours:.1f} hours of training steps in all; starting, validating, sampling and evaluating come on top."
        )
    table = Table("row", "training", "parameters", "GFLOP/volume", "memory CPU, GiB", "memory GPU, GiB", "samplers")
    for name, size in sizes.items():
        for place, each in enumerate(size.trainings):
            flops = "–" if each.flops_per_volume is None else f"{each.flops_per_volume / 1e9:,.2f}"
            memory = [
                f"{each.memory_bytes[kind] / _GIB:.2f}" if kind in each.memory_bytes else "–"
                for kind in ("cpu", "cuda")
            ]
            samplers = "" if place else "; ".join(f"{sampler}: {words}" for sampler, words in size.sampling.items())
            table.add_row(
                "" if place else name, f"{each.name} ({each.family})", f"{each.parameters:,}", flops, *memory, samplers
            )
    console.print(table)
    for name, size in sizes.items():
        for sentence in size.deviations:
            console.print(f"{name}: {sentence}")
    return out.getvalue().rstrip()
