"""`prdit prune`: removes stages that no recent run uses. Imports of heavy libraries wait until the command needs them."""

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Config, Json, Set, Workdir, clear_errors, load_settings, show_result

if TYPE_CHECKING:
    from flows.config import PipelineConfig
    from tasks.prune.plan import Checkpoints

_WIDTH = 120
_GB, _DAY_S = 1e9, 86400.0


def prune(
    keep_runs: Annotated[int, typer.Option(min=0, help="Newest runs whose stages are kept.")] = 10,
    keep_days: Annotated[float, typer.Option(min=0.0, help="What was used in this many days is kept.")] = 7.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, nothing is changed.")] = False,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Show which stages in the working folder no recent run uses, and with --yes remove them.

    Kept is what the newest runs used or made, what was used lately, what a process works on, champions, every registered version
    with an alias, and all that these were made from. While MLflow does not answer, every version that was decided on is kept.
    Stores, sources, records of runs and MLflow's files are never touched. A removed stage is made again when a run needs it.
    """
    with clear_errors():
        loaded = load_settings(config, settings, workdir=workdir)
        from tasks.prune.plan import plan
        from tasks.prune.remove import remove_all
        from tasks.run.progress import show_progress

        place = Path(loaded.workdir)
        rows = plan(place, keep_runs=keep_runs, keep_days=keep_days, checkpoints=_kept(loaded))
        removable = [row for row in rows if row.removable]
        removed = []
        if yes and removable:
            with show_progress("prune") as progress:
                removed = remove_all(removable, progress)
        now = time.time()
        stages = [
            {
                "stage": row.stage,
                "key": row.key,
                "path": str(row.path),
                "age_days": round(max(0.0, now - row.last_used) / _DAY_S, 2),
                "size_bytes": row.size_bytes,
                "finished": row.finished,
                "removable": row.removable,
                "removed": row in removed,
                "why": row.why,
            }
            for row in rows
        ]
        value = {
            "workdir": str(place),
            "stages": stages,
            "removable_bytes": sum(row.size_bytes for row in removable),
            "removed_bytes": sum(row.size_bytes for row in removed),
        }
        show_result(value, as_json, lambda: prune_text(value, yes))


def _kept(config: "PipelineConfig") -> "Checkpoints":
    """Checkpoints that retention keeps whatever their age; what it gives up is its own to remove."""
    from dataclasses import replace

    from flows.installation import installation, mlflow_address
    from flows.record import tracking_uri
    from flows.services import DEFAULT_STATE_DIR
    from flows.site import load_site

    site, place = load_site(), Path(config.workdir).resolve()
    address = mlflow_address()
    if address is None and (place / "mlflow.db").is_file() and not DEFAULT_STATE_DIR.exists():
        address = tracking_uri(place)  # with services that are stopped it is not the file that knows
    found = installation(config, site, address).checkpoints(site.retention)
    return replace(found, given_up={})


def prune_text(value: dict[str, Any], yes: bool) -> str:
    """The plan as a table, and what it comes to."""
    from rich.console import Console
    from rich.table import Table

    stages = value["stages"]
    if not stages:
        return f"no stages in {value['workdir']}"
    table = Table("", "stage", "key", "days", "GB", "why")
    for column in (3, 4):
        table.columns[column].justify = "right"
    for row in stages:
        what = "removed" if row["removed"] else "remove" if row["removable"] else "keep"
        size = f"{row['size_bytes'] / _GB:.3f}"
        table.add_row(what, row["stage"], row["key"][:8], f"{row['age_days']:.1f}", size, row["why"])
    out = io.StringIO()
    Console(file=out, width=_WIDTH, highlight=False, markup=False).print(table)
    number = sum(row["removed"] if yes else row["removable"] for row in stages)
    size = f"{value['removed_bytes' if yes else 'removable_bytes'] / _GB:.3f} GB"
    if yes:
        return f"{out.getvalue()}removed {number} of {len(stages)} stages, {size}, from {value['workdir']}"
    again = "; nothing was changed, --yes removes them" if number else ""
    return f"{out.getvalue()}{number} of {len(stages)} stages in {value['workdir']} can be removed: {size}{again}"
