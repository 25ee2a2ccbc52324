"""`prdit plan`: what a training or sampling needs. Imports of heavy libraries wait until the command needs them."""

import io
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Json, clear_errors, show_result

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 150
_MIB, _GIB = 2**20, 2**30
_NOTES = (
    "Memory is the network's at its peak; Python and PyTorch (0.3 GiB) and the scans come on top. CPU: within 20 % of measured "
    "(docs/benchmarks.md). GPU: estimates, with 0.6 GiB for CUDA and a tenth for the allocator. FLOPs: of matrix products, two a "
    "multiply-add."
)


def plan(
    preset: Annotated[str, typer.Option(help="Published preset: size/patch/depth.")] = "B/12/4",
    size: Annotated[int, typer.Option(help="Volume edge in voxels.")] = 128,
    batch: Annotated[int, typer.Option(help="Volumes a step.")] = 8,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Plan stage 3 instead: a refining head at --size on the preset at half of it."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs and memory of every stage, before anything is allocated; and which GPU it fits."""
    with clear_errors():
        from prdit_models.plan import plan as make_plan

        # which attention a fake tensor takes says nothing about a real one
        logging.getLogger("prdit.models.attention").setLevel(logging.WARNING)
        found = make_plan(preset, size, batch, refine=refine)
        show_result({**found, "notes": _NOTES}, as_json, lambda: plan_text(found))


def plan_text(plan: dict[str, Any]) -> str:
    """A plan as tables."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False)
    refined = ", refined from half the edge" if plan["refine"] else ""
    console.print(f"PRDiT-{plan['preset']} at {plan['size']}³{refined}, batch {plan['batch']}")
    for table in (_work_table(plan), _cpu_table(plan), _gpu_table(plan)):
        console.print(table)
    console.print(_NOTES)
    return out.getvalue().rstrip()


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _work_table(plan: dict[str, Any]) -> "Table":
    columns = ("stage", "parameters", "trainable", "forward", "training step", "with checkpointing")
    table = _table("Parameters, and TFLOPs of the batch", *columns)
    for stage, parameters in plan["parameters"].items():
        flops = plan["flops"][stage]
        keys = ("forward", "training_step", "training_step_checkpointing")
        work = [f"{flops[key] / 1e12:.3f}" if key in flops else "" for key in keys]
        table.add_row(stage, f"{parameters['all']:,}", f"{parameters['trainable']:,}", *work)
    return table


def _cpu_table(plan: dict[str, Any]) -> "Table":
    parts = ("weights", "gradients", "moments", "ema", "activations", "allocator", "total")
    table = _table("CPU memory, MiB", "", *parts)
    for row in plan["cpu"]:
        table.add_row(_work(row), *(f"{row[part] / _MIB:,.0f}" for part in parts))
    return table


def _gpu_table(plan: dict[str, Any]) -> "Table":
    sizes = plan["gpu"][0]["largest_batch"]
    title = "GPU memory (estimate): whether the batch fits, largest that does"
    table = _table(title, "", "needed, GiB", *(f"{size} GB" for size in sizes))
    for row in plan["gpu"]:
        fits = [f"{'yes' if most >= plan['batch'] else 'no'}, {most}" for most in row["largest_batch"].values()]
        table.add_row(_work(row), f"{row['needed_bytes'] / _GIB:.1f}", *fits)
    return table


def _work(row: dict[str, Any]) -> str:
    again = ", checkpointing" if row["checkpointing"] else ""
    return f"{row['what']} {row['stage']}, {row['precision']}{again}"
