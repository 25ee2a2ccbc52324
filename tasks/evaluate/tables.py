"""Tables of the report: every figure with its floor, its order test and what is to be known of it, from the document alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prdit_models.metrics.anatomy import Limit
from prdit_models.metrics.metric import METRICS, About
from storage.documents.report import FigureRecord, Report

RANDOM_WORDS = " (random features)"
GROUPS = {  # headings of the table, and the metrics under them; a metric that is not named stands under its own name
    "Distances between the sets": ("fid", "kid", "mmd", "prdc", "wasserstein"),
    "Variety and copies": ("ms_ssim", "memorisation"),
    "Hounsfield units and texture": ("hu", "spectrum"),
    "Anatomy": ("anatomy",),
}


@dataclass(frozen=True)
class Row:
    """One figure as the table shows it.

    Attributes:
        name: as in metrics.json.
        title: in words; says so where its features are random.
        figure: the number.
        about: what is known of it before it is measured.
        floor, blurred, noised: the same figure of real volumes against other real volumes, as they are and degraded, or None.
        blind: the sentence where it does not order these; empty where it does.
        footnote: number of its note, where several figures have the same one; 0: it stands with the figure.
    """

    name: str
    title: str
    figure: FigureRecord
    about: About
    floor: FigureRecord | None
    blurred: FigureRecord | None
    noised: FigureRecord | None
    blind: str
    footnote: int = 0


@dataclass(frozen=True)
class Group:
    """Rows under one heading."""

    title: str
    rows: list[Row]


def figure_groups(metrics: Report) -> list[Group]:
    """Every figure that has a value, under headings; `anatomy_table` has the distances of single anatomy figures."""
    abouts = about_figures()
    found: dict[str, list[Row]] = {title: [] for title in GROUPS}
    titles = {metric: title for title, names in GROUPS.items() for metric in names}
    for name, figure in metrics.figures.items():
        if figure.value is None or _is_of_anatomy_table(name, metrics):
            continue
        metric, about = abouts.get(name, ("", About(name)))
        floor, blurred, noised = (metrics.references.get(how, {}).get(name) for how in ("floor", "blurred", "noised"))
        blind = metrics.blind.get(name, "")
        row = Row(name, title_of(name, metrics), figure, about, floor, blurred, noised, blind)
        found.setdefault(titles.get(metric, metric or "Other metrics"), []).append(row)
    groups = [Group(title, rows) for title, rows in found.items() if rows]
    numbers = {note: number for number, note in enumerate(footnotes(groups), 1)}
    for group in groups:
        group.rows[:] = [replace(row, footnote=numbers.get(row.figure.note, 0)) for row in group.rows]
    return groups


def undefined(metrics: Report) -> list[tuple[str, str]]:
    """(titles, reason) of the figures without a value."""
    found: dict[str, list[str]] = {}
    for name, figure in metrics.figures.items():
        if figure.value is None and not _is_of_anatomy_table(name, metrics):
            found.setdefault(figure.note, []).append(title_of(name, metrics))
    return [("; ".join(titles), reason) for reason, titles in found.items()]


def footnotes(groups: list[Group]) -> list[str]:
    """Notes that several figures share, in the order in which they appear; they stand below the table once."""
    counts = Counter(row.figure.note for group in groups for row in group.rows)
    return [note for note, count in counts.items() if note and count > 1]


def _is_of_anatomy_table(name: str, metrics: Report) -> bool:
    return name.removeprefix("anatomy_").removesuffix("_distance") in anatomy_limits(metrics)


def about_figures() -> dict[str, tuple[str, About]]:
    """The metric and what is known of each figure that any metric can give, by the figure's name."""
    return {name: (metric, about) for metric in METRICS.names() for name, about in METRICS[metric].figures.items()}


def title_of(name: str, metrics: Report) -> str:
    """A figure's title: as its metric gives it, else the name itself. One of random features says so."""
    about = about_figures().get(name)
    title = about[1].title if about else name
    figure = metrics.figures.get(name)
    random = metrics.features.random and figure is not None and figure.features is not None
    return title + RANDOM_WORDS * (random and "random features" not in title.lower())


def explanations(groups: list[Group]) -> list[tuple[str, str, str]]:
    """(titles, sources, caveat) of the figures, those of one heading that share a caveat together."""
    shared: dict[tuple[str, str], list[Row]] = {}
    for group in groups:
        for row in group.rows:
            if row.about.source or row.about.caveat:
                shared.setdefault((group.title, row.about.caveat), []).append(row)
    return [
        ("; ".join(row.title for row in rows), "; ".join(dict.fromkeys(row.about.source for row in rows)), caveat)
        for (_, caveat), rows in shared.items()
    ]


def floor_size(groups: list[Group]) -> str:
    """`n real, n generated` of the floor, where it is one for all figures; else an empty text."""
    floors = [row.floor for group in groups for row in group.rows if row.floor is not None and row.about.better]
    sizes = {f"{floor.n_real}, {floor.n_generated}" for floor in floors if floor.value is not None}
    return sizes.pop() if len(sizes) == 1 else ""


def anatomy_limits(metrics: Report) -> Mapping[str, Any]:
    """The limits of anatomy by figure, as in the details; empty where it is not measured."""
    limits: Mapping[str, Any] = metrics.details.get("anatomy", {}).get("limits", {})
    return limits


def anatomy_table(metrics: Report) -> list[dict[str, Any]]:
    """One row per figure: title, unit, limits, (low, median, high) of both sides, how many generated are outside, distance."""
    section, rows = metrics.details.get("anatomy", {}), []
    for name, limit in anatomy_limits(metrics).items():
        row: dict[str, Any] = {"name": name, "title": limit["title"], "unit": limit["unit"]}
        row["limits"] = Limit(**limit).bounds(metrics.voxel_mm)
        for side in ("real", "generated"):
            row[f"{side}_values"] = [v for seen in section[side].values() if (v := seen["figures"][name]) is not None]
            row[side] = np.quantile(row[f"{side}_values"], [0, 0.5, 1]).tolist() if row[f"{side}_values"] else None
        row["outside"] = sum(name in seen["failed"] for seen in section["generated"].values())
        row["distance"] = metrics.figures[f"anatomy_{name}_distance"]
        floor = metrics.references.get("floor", {}).get(f"anatomy_{name}_distance")
        row["floor"] = floor.value if floor else None
        rows.append(row)
    return rows


Rows = list[dict[str, Any]]
_LOSS_PREFIX = "val/loss_"


def loss_table(trainings: list[tuple[str, Rows]]) -> dict[str, Any]:
    """Last validation losses (EMA) of trainings by time: `{titles, rows: [{part, losses, better}]}`.

    `better` says whether the last training's loss is below the first's; there is a table only where two can be compared.
    """
    last: list[dict[str, float]] = []
    for _, rows in trainings:
        losses: dict[str, float] = {}
        for row in rows:
            losses |= {
                key.removeprefix(_LOSS_PREFIX): float(value)
                for key, value in row.items()
                if key.startswith(_LOSS_PREFIX) and key != "val/loss_ema" and value is not None
            }
        last.append(losses)
    shared = sorted(set.intersection(*map(set, last))) if len(last) > 1 else []
    table = [
        {"part": part, "losses": [losses[part] for losses in last], "better": last[-1][part] < last[0][part]}
        for part in shared
    ]
    return {"titles": [name for name, _ in trainings], "rows": table}
