"""The comparison as one self-contained HTML page; style and script are those of the report."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from storage.documents.comparison import ComparedFigure, Comparison, Difference
from storage.volume_store import VolumeStore
from tasks.compare.curves import draw_curves
from tasks.compare.runs import Run
from tasks.evaluate.formats import interval, number, picture, plain
from tasks.evaluate.formats import signed as plain_signed
from tasks.evaluate.lineage import package_versions
from tasks.evaluate.stacks import Stack, offsets_mm, slice_places, volume_stacks
from tasks.evaluate.tables import GROUPS, about_figures
from tasks.model.slices import WINDOWS

NUM_SHOWN = 6  # seeds whose volumes are shown
_OTHERS = "Other metrics"
_SCRIPT = "report.js"


@dataclass(frozen=True)
class Picture:
    """One generated volume.

    Attributes:
        label, name: of its run.
        volume_id: in the run's store.
        stacks: its slices.
    """

    label: str
    name: str
    volume_id: str
    stacks: tuple[Stack, ...]


@dataclass(frozen=True)
class Group:
    """Volumes that belong together: of one seed, or of one place in their stores.

    Attributes:
        title: seed or place, in words.
        pictures: one per run.
    """

    title: str
    pictures: list[Picture]


def groups(runs: Sequence[Run], count: int = NUM_SHOWN) -> list[Group]:
    """Volumes of the first seeds that all runs have; where there are none, the first volumes of each by their place."""
    by_seed = [dict(zip(run.samples.seeds, run.samples.volume_ids, strict=True)) for run in runs]
    seeds = [seed for seed in runs[0].samples.seeds if all(seed in found for found in by_seed)][:count]
    if seeds:
        rows = {f"{by_seed[0][seed]}, seed {seed}": [found[seed] for found in by_seed] for seed in seeds}
    else:
        places = range(min(count, *(len(run.samples.volume_ids) for run in runs)))
        ids = [[run.samples.volume_ids[place] for run in runs] for place in places]
        rows = {f"{names[0]}, other seeds": names for names in ids}
    shown = slice_places(runs[0].report.volume_size, len(rows) * len(runs))
    return [
        Group(title, [_picture(run, name, shown) for run, name in zip(runs, names, strict=True)])
        for title, names in rows.items()
    ]


def render(comparison: Comparison, runs: Sequence[Run], pictures: Sequence[Group], command: str) -> str:
    """The page as text. It loads nothing from elsewhere and names no path; every value is escaped.

    Args:
        comparison: what was found.
        runs: that were compared.
        pictures: of `groups`.
        command: that repeats the comparison.
    """
    loader = ChoiceLoader([PackageLoader("tasks.compare", "."), PackageLoader("tasks.evaluate", ".")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": number,
        "plain": plain,
        "plain_signed": plain_signed,
        "interval": interval,
        "signed": signed,
        "verdict": verdict,
        "shown": shown,
        "zip": zip,
        "picture": picture,
    }
    environment.filters.update(filters)
    script = loader.get_source(environment, _SCRIPT)[0]
    report = runs[0].report
    places = slice_places(report.volume_size, sum(len(group.pictures) for group in pictures))
    return environment.get_template("compare.html.j2").render(
        comparison=comparison,
        first=comparison.runs[0],
        others=comparison.runs[1:],
        reports={run.label: run.report for run in runs},
        links={run.label: mlflow_link(run) for run in runs},
        report=report,
        groups=pictures,
        curves=draw_curves(runs),
        num_places=len(places),
        offsets=offsets_mm(report.volume_size, places, report.voxel_mm),
        middle=len([place for place in places if place < report.volume_size // 2]),
        windows=WINDOWS,
        edge_mm=report.volume_size * report.voxel_mm,
        tables=tables([each for each in comparison.figures if not (is_detail(each.name) or each.is_equal)]),
        details=[figure for figure in comparison.figures if is_detail(figure.name) and not figure.is_equal],
        equal=[each for each in comparison.figures if each.is_equal and each.values[runs[0].label].value is not None],
        versions=package_versions(),
        command=command,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def tables(figures: Sequence[ComparedFigure]) -> dict[str, list[ComparedFigure]]:
    """Figures under the headings of the report, in its order."""
    titles = {metric: title for title, metrics in GROUPS.items() for metric in metrics}
    found: dict[str, list[ComparedFigure]] = {title: [] for title in GROUPS}
    abouts = about_figures()
    for figure in figures:
        metric = abouts[figure.name][0] if figure.name in abouts else _OTHERS
        found.setdefault(titles.get(metric, metric), []).append(figure)
    return {title: rows for title, rows in found.items() if rows}


def is_detail(name: str) -> bool:
    """Whether a figure is one of many of a kind, which the page folds."""
    return name.startswith("anatomy_") and name.endswith("_distance")


def mlflow_link(run: Run) -> str:
    """Address of a run's page; empty where MLflow has no web page for it."""
    if not (run.mlflow_run_id and run.mlflow_experiment_id) or urlsplit(run.mlflow_uri).scheme not in ("http", "https"):
        return ""
    place = f"experiments/{run.mlflow_experiment_id}/runs/{run.mlflow_run_id}"
    return f"{run.mlflow_uri.rstrip('/')}/#/{place}?workflowType=machine_learning"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return "–" if value is None else ("+" if value > 0 else "") + number(value)


def verdict(difference: Difference) -> str:
    """What an interval says, in a word; empty where it says nothing."""
    if difference.interval is None:
        return ""
    if difference.better is None:
        low, high = difference.interval["low"], difference.interval["high"]
        return "no clear difference" if low <= 0.0 <= high else "differs"
    return "better" if difference.better else "worse"


def figure_words(difference: Difference) -> str:
    """A difference with its interval and what that says."""
    if difference.interval is None:
        return signed(difference.value)
    return f"{signed(difference.value)} ({interval(difference.interval)}){' ' * bool(verdict(difference))}{verdict(difference)}"


def shown(values: Mapping[str, Any], label: str) -> str:
    """A setting of a run as text; a dash where the run has no such setting."""
    if label not in values:
        return "–"
    value = values[label]
    if value == {}:
        return "no settings"
    return (
        {True: "true", False: "false", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _picture(run: Run, volume_id: str, places: Sequence[int]) -> Picture:
    store = VolumeStore.open(run.samples_ref.path / run.samples.store)
    hu = store.read_level(volume_id).hu.astype("float32")
    return Picture(run.label, run.name, volume_id, volume_stacks(hu, places))
