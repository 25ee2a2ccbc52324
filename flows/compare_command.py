"""`prdit compare`: reports of several runs side by side. Imports of heavy libraries wait until the command needs them."""

import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Json, Workdir, clear_errors, load_settings, show_result

if TYPE_CHECKING:
    from storage.documents.comparison import Comparison

_WIDTH = 120
_FOLDER = "compare"  # in the working folder


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs, the first is what the others are compared with: `latest`, name or folder of a run, folder of a report, or "
            "id of a run in MLflow."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the page and comparison.json; default: in the working folder.")
    ] = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Put runs side by side: figures with intervals of their differences, volumes of the same seeds, what differs in configuration.

    Writes one HTML page and comparison.json, and puts both on the runs in MLflow (artifacts, folder `compare`). Figures that do not
    mean the same (another feature network, size, voxel distance or Hounsfield window) are refused. docs/compare.md.
    """
    with clear_errors():
        loaded = load_settings("small", None, workdir=workdir)
        from flows.record import tracking_uri
        from storage.files import naming_path
        from tasks.compare.differences import compare as put_side_by_side
        from tasks.compare.features import features_of
        from tasks.compare.output import attach_to_runs, folder_name, write
        from tasks.compare.runs import find, load
        from tasks.evaluate.comparability import check_comparable
        from tasks.run.progress import show_progress

        place = Path(loaded.workdir)
        found = load([find(each, place) for each in runs], tracking_uri(place.resolve()))
        check_comparable({f"{run.label} ({run.name})": run.report for run in found})
        folder = output or place / _FOLDER / folder_name(found)
        with naming_path(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with show_progress("compare") as progress:
            comparison = put_side_by_side(found, features_of, progress)
        command = shlex.join(["prdit", "compare", *(run.name for run in found)])
        command += " --workdir …" if workdir else ""  # no path on a page that is passed on
        page = write(comparison, found, folder, command)
        in_mlflow = attach_to_runs(found, folder, command)
        value = comparison.to_json() | {"page": str(page), "in_mlflow": in_mlflow}
        show_result(value, as_json, lambda: comparison_text(comparison) + f"page: {page}")


def comparison_text(comparison: "Comparison") -> str:
    """Runs, notes, figures and settings as tables."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, highlight=False, markup=False)
    for run in comparison.runs:
        console.print(f"{run.label}  {run.name}, {run.n_generated} samples against {run.n_real} real volumes")
    for run in comparison.runs:
        for sentence in run.warnings:
            console.print(f"{run.label}: {sentence}")
    for note in comparison.notes:
        console.print(f"note: {note}")
    console.print(_figure_table(comparison))
    if comparison.settings:
        console.print(_setting_table(comparison))
    else:
        console.print("No setting, no code version and no data differ.")
    return out.getvalue()


def _figure_table(comparison: "Comparison") -> Any:
    from rich.table import Table
    from rich.text import Text

    from tasks.compare.page import figure_words, is_detail, tables
    from tasks.evaluate.formats import number

    first, *others = (run.label for run in comparison.runs)
    table = Table("figure", *_labels(comparison), *(f"{label} − {first}" for label in others), "real against real")
    for column in table.columns[1:]:
        column.justify = "right"
    shown = [figure for figure in comparison.figures if not (is_detail(figure.name) or figure.is_equal)]
    for figure in (figure for rows in tables(shown).values() for figure in rows):
        values = [
            number(figure.values[run.label].value) if run.label in figure.values else "–" for run in comparison.runs
        ]
        words = [figure_words(difference) for difference in figure.differences]
        floor = number(figure.floor.value) if figure.floor else "–"
        title = figure.title + (" (blind)" if figure.blind else "")
        table.add_row(*(Text(text) for text in (title, *values, *words, floor)))
    return table


def _labels(comparison: "Comparison") -> list[str]:
    """A, B, …"""
    return [run.label for run in comparison.runs]


def _setting_table(comparison: "Comparison") -> Any:
    from rich.table import Table
    from rich.text import Text

    from tasks.compare.page import shown

    labels = _labels(comparison)
    table = Table("stage", "setting", *labels)
    for setting in comparison.settings:
        values = [shown(setting.values, label) for label in labels]
        table.add_row(*(Text(text) for text in (setting.stage, setting.key, *values)))
    return table
