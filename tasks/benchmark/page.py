"""The benchmark as one self-contained HTML page; its style is the report's, its script sorts the table."""

import base64
import hashlib
import logging
from dataclasses import dataclass

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from prdit_models.metrics.metric import LEVEL
from storage.documents.benchmark import BenchmarkDocument, Line
from storage.errors import StorageError
from tasks.benchmark.columns import COLUMNS, Column
from tasks.benchmark.grids import of_samples, of_store
from tasks.benchmark.paper import PAPER, SOURCE, PaperRow
from tasks.benchmark.plots import draw
from tasks.benchmark.summary import INTERVAL, Mean, means_of
from tasks.evaluate.formats import number, picture, plain
from tasks.model.slices import LUNG

_SCRIPT = "page.js"
_COUNTS = ("training_steps", "volumes_seen", "evaluations")
logger = logging.getLogger("prdit.benchmark")


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
        text: the mean over seeds.
        interval: of it; empty where there is none.
        value: for sorting; empty where there is none.
        best: whether no other line is better.
    """

    text: str
    interval: str
    value: str
    best: bool


@dataclass(frozen=True)
class Shown:
    """One line as the page shows it.

    Attributes:
        line: of the document.
        cells: one per column.
        grid: its volumes as WebP; None where it has none.
    """

    line: Line
    cells: list[Cell]
    grid: bytes | None


def render(document: BenchmarkDocument) -> str:
    """The page.

    Raises: StorageError: a document of a sample store cannot be read.
    """
    loader = ChoiceLoader([PackageLoader("tasks.benchmark", "."), PackageLoader("tasks.evaluate", ".")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({"number": number, "picture": picture, "plain": plain})
    lines = _shown(document)
    script = loader.get_source(environment, _SCRIPT)[0]
    return environment.get_template("page.html.j2").render(
        document=document,
        columns=COLUMNS,
        lines=lines,
        by_row=list({shown.line.row: shown for shown in reversed(lines)}.values())[::-1],
        floor=[_floor_cell(column, document) for column in COLUMNS],
        real=_grid_of_real(document),
        plot=draw(document.lines, document.floor.get("fid")),
        paper=_paper(document),
        paper_source=SOURCE,
        interval_note=INTERVAL.format(level=LEVEL),
        window=LUNG,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _shown(document: BenchmarkDocument) -> list[Shown]:
    means = [means_of(line) for line in document.lines]
    best = {column.name: _best(column, means) for column in COLUMNS}
    found = []
    for line, of_line in zip(document.lines, means, strict=True):
        cells = [_cell(column, of_line.get(column.name), best[column.name]) for column in COLUMNS]
        found.append(Shown(line, cells, of_samples(line.results[0].samples) if line.results else None))
    return found


def _best(column: Column, means: list[dict[str, Mean]]) -> float | None:
    values = [mean[column.name].value for mean in means if column.name in mean]
    if not column.better or len(values) < 2 or len(set(values)) == 1:
        return None
    return min(values) if column.better == "lower" else max(values)


def _cell(column: Column, mean: Mean | None, best: float | None) -> Cell:
    if mean is None:
        return Cell("–", "", "", best=False)
    bounds = f"{cell_text(column, mean.low)} to {cell_text(column, mean.high)}" if mean.varies else ""
    return Cell(cell_text(column, mean.value), bounds, f"{mean.value:.10g}", mean.value == best)


def cell_text(column: Column, value: float | None) -> str:
    """A figure as the table shows it."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if column.name in _COUNTS else number(value / column.scale)


def _floor_cell(column: Column, document: BenchmarkDocument) -> str:
    return cell_text(column, document.floor.get(column.name))


def _grid_of_real(document: BenchmarkDocument) -> bytes | None:
    edge = document.view_edge
    try:
        return of_store(document.snapshot, document.split, document.volume_size, edge)
    except StorageError as error:  # a patient was forgotten since: the table stays
        logger.warning("real volumes are not shown: %s", error)
        return None


def _paper(document: BenchmarkDocument) -> list[tuple[PaperRow, list[str]]]:
    """The paper's rows of this size, else those at 128³, each with the titles of the lines that are beside it."""
    size = document.volume_size if any(row.size == document.volume_size for row in PAPER) else 128
    beside: dict[str, dict[str, None]] = {}
    for line in document.lines:
        beside.setdefault(line.paper, {})[line.title] = None
    return [(row, list(beside.get(row.model, ()))) for row in PAPER if row.size == size]
