"""`prdit plan`: what a training or sampling needs. Imports of heavy libraries wait until the command needs them."""

import io
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Config, Json, Set, clear_errors, load_settings, show_result

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 150
_MIB, _GIB = 2**20, 2**30
_NOTES = (
    "Memory is the network's at its peak; Python and PyTorch (0.3 GiB) and the scans come on top. CPU: within 20 % of measured "
    "(docs/benchmarks.md). GPU: estimates, with 0.6 GiB for CUDA and a tenth for the allocator. Reconstruct: by the guides pigdm "
    "and dps; the others take what sampling takes. FLOPs: of matrix products, two a multiply-add."
)


def plan(
    config: Config = "published/lidc-128",
    settings: Set = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Volumes computed together; default: each training's batch_size.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters, FLOPs and memory of every training of a configuration, before anything is allocated; and which GPU it fits."""
    with clear_errors():
        loaded = load_settings(config, settings)
        from prdit_models.families.family import Training
        from prdit_models.plan import Planned
        from prdit_models.plan import plan as make_plan

        # which attention a fake tensor takes says nothing about a real one
        logging.getLogger("prdit.models.attention").setLevel(logging.WARNING)
        infos = loaded.checkpoints()
        trainings = {
            name: Planned(
                infos[name].of_family,
                infos[name].model,
                Training(training.settings, infos[name].process, training.lr, training.weight_decay),
                infos[name].view.size,
            )
            for name, training in loaded.trainings.items()
        }
        found = make_plan(trainings, {name: batch or each.batch_size for name, each in loaded.trainings.items()})
        show_result({"configuration": config, **found, "notes": _NOTES}, as_json, lambda: plan_text(config, found))


def plan_text(config: str, plan: dict[str, Any]) -> str:
    """A plan as tables."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False, markup=False)
    batches = ", ".join(f"{name} {batch}" for name, batch in plan["batch"].items())
    console.print(f"Configuration {config}; volumes computed together: {batches}")
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
    columns = ("training", "parameters", "trainable", "forward", "training step", "with checkpointing")
    table = _table("Parameters, and TFLOPs of the batch", *columns)
    for name, parameters in plan["parameters"].items():
        flops = plan["flops"][name]
        keys = ("forward", "training_step", "training_step_checkpointing")
        work = [f"{flops[key] / 1e12:.3f}" for key in keys]
        table.add_row(name, f"{parameters['all']:,}", f"{parameters['trainable']:,}", *work)
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
        fits = [
            f"{'yes' if most >= plan['batch'][row['name']] else 'no'}, {most}" for most in row["largest_batch"].values()
        ]
        table.add_row(_work(row), f"{row['needed_bytes'] / _GIB:.1f}", *fits)
    return table


def _work(row: dict[str, Any]) -> str:
    again = ", checkpointing" if row["checkpointing"] else ""
    return f"{row['what']} {row['name']}, {row['precision']}{again}"
