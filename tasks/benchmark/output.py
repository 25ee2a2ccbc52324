"""The files of a benchmark: benchmark.json, table.csv, table.tex, compare.html."""

import csv
import io
from pathlib import Path

from storage.documents.benchmark import BenchmarkDocument, Line
from storage.files import naming_path, write_text_atomic
from tasks.benchmark.columns import COLUMNS, Column
from tasks.benchmark.page import cell_text, render
from tasks.benchmark.summary import Mean, means_of
from tasks.evaluate.formats import number

PAGE, CSV, LATEX = "compare.html", "table.csv", "table.tex"
FILES = (PAGE, CSV, LATEX)  # that may be passed on: the document names folders
_ESCAPES = {
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "³": "$^3$",
    "→": r"$\to$",
}


def write(document: BenchmarkDocument, folder: Path) -> None:
    """Write the table in all its forms. Raises: UnwritableError; StorageError: a sampled volume cannot be read."""
    with naming_path(folder):
        folder.mkdir(parents=True, exist_ok=True)
    document.save(folder)
    write_text_atomic(folder / CSV, as_csv(document))
    write_text_atomic(folder / LATEX, as_latex(document))
    write_text_atomic(folder / PAGE, render(document))


def as_csv(document: BenchmarkDocument) -> str:
    """One line per row and sampler: of each figure the mean over seeds, both bounds and how many seeds have it; in plain units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("", "_low", "_high", "_seeds")
    heads = [column.name + part for column in COLUMNS for part in parts]
    writer.writerow(["row", "title", "sampler", *heads, "failed", "deviations"])
    for line in document.lines:
        means = means_of(line)
        cells = [cell for column in COLUMNS for cell in _cells(means.get(column.name))]
        writer.writerow([line.row, line.title, line.sampler, *cells, len(line.failed), " | ".join(line.deviations)])
    if document.floor:
        floor = [cell for column in COLUMNS for cell in (_plain(document.floor.get(column.name)), "", "", "")]
        writer.writerow(["real", "Real against real", "", *floor, 0, document.floor_note])
    return out.getvalue()


def _cells(mean: Mean | None) -> tuple[str, ...]:
    if mean is None:
        return "", "", "", "0"
    return _plain(mean.value), _plain(mean.low), _plain(mean.high), str(mean.count)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"


def as_rows(document: BenchmarkDocument) -> list[dict[str, str]]:
    """The table in short, for a run's page: of every figure that some line has the mean over seeds."""
    rows = []
    for line in document.lines:
        means = {name: mean.value for name, mean in means_of(line).items()}
        figures = {_head(column): cell_text(column, means.get(column.name)) for column in _given(document)}
        rows.append({"Row": _title(line), "Seeds": f"{len(line.results)} of {len(document.seeds)}"} | figures)
    return rows


def as_latex(document: BenchmarkDocument) -> str:
    """The table for a paper: a `tabular` of booktabs, means with half the width of their intervals."""
    given = _given(document)
    heads = " & ".join([r"Model", *(_latex_head(column) for column in given)])
    body = [" & ".join([_latex_text(_title(line)), *_latex_cells(line, given)]) + r" \\" for line in document.lines]
    if document.floor:
        cells = [_latex_number(column, document.floor.get(column.name)) for column in given]
        body += [r"\midrule", " & ".join(["Real against real", *cells]) + r" \\"]
    note = _latex_text(
        f"{document.title}. Budget: {document.budget}; {len(document.seeds)} seed(s), {document.num_volumes} volumes."
    )
    return "\n".join(
        [
            f"% {document.name}, {document.digest}",
            "% " + note,
            rf"\begin{{tabular}}{{l{'r' * len(given)}}}",
            r"\toprule",
            heads + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _given(document: BenchmarkDocument) -> list[Column]:
    """The columns of which some line has the figure."""
    return [column for column in COLUMNS if any(column.name in means_of(line) for line in document.lines)]


def _head(column: Column) -> str:
    return column.title + (f" [{column.unit}]" if column.unit else "")


def _title(line: Line) -> str:
    return f"{line.title} ({line.sampler})"


def _latex_head(column: Column) -> str:
    arrow = {"lower": r" $\downarrow$", "higher": r" $\uparrow$"}.get(column.better, "")
    return _latex_text(_head(column)) + arrow


def _latex_cells(line: Line, columns: list[Column]) -> list[str]:
    means = means_of(line)
    cells = []
    for column in columns:
        mean = means.get(column.name)
        text = _latex_number(column, mean.value if mean else None)
        if mean and mean.high is not None and mean.varies:
            text += rf" $\pm$ {_latex_number(column, mean.high - mean.value)}"
        cells.append(text)
    return cells


def _latex_number(column: Column, value: float | None) -> str:
    if value is None:
        return "--"
    mantissa, _, exponent = number(value / column.scale).replace("−", "-").partition("e")
    if exponent:
        return rf"${mantissa} \times 10^{{{int(exponent)}}}$"
    return f"${mantissa}$" if value < 0 else mantissa  # a minus, not a hyphen


def _latex_text(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in text)
