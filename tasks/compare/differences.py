"""Figures of several reports side by side: what runs share, differences to the first run, their intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.metrics.distances import RANDOM_SUFFIX, VAL_SUFFIX, FeatureDistance
from prdit_models.metrics.metric import METRICS, About
from prdit_models.metrics.paired import paired_interval, share_difference
from storage.documents.comparison import ComparedFigure, ComparedRun, Comparison, Difference, Pairs, Setting
from tasks.compare.features import GENERATED, REAL
from tasks.compare.runs import Run
from tasks.compare.settings import differing_settings
from tasks.evaluate.tables import about_figures, title_of
from tasks.run.settings import settings_of

FeaturesOf = Callable[[Run, str, Sequence[str]], NDArray[np.float32] | None]
Done = Callable[[int, int], None]
_SHARE = "anatomy_pass_share"
_NO_FEATURES = "No interval: the features of the volumes are not there any more, and cannot be computed again."


def compare(runs: Sequence[Run], features_of: FeaturesOf, progress: Done) -> Comparison:
    """Put the reports of comparable runs side by side.

    Args:
        runs: two or more; the first is what the others are compared with.
        features_of: (run, `generated` or `real`, volume ids) -> features in the order of the ids, or None where they cannot be had.
        progress: called with (differences done, total).
    """
    first, *others = runs
    pairs = {run.label: pairs_of(first, run) for run in others}
    about = about_figures()
    names = list(dict.fromkeys(name for run in runs for name in run.report.figures))
    features = _Features(features_of)
    figures, total = [], len(names) * len(others)
    for place, name in enumerate(names):
        differences = []
        known = about[name][1] if name in about else About(name)
        for number, run in enumerate(others, start=1):
            differences.append(_difference(name, known, first, run, pairs[run.label], features))
            progress(place * len(others) + number, total)
        figures.append(_figure(name, known, runs, differences))
    settings = differing_settings(runs)
    return Comparison(
        runs=[_described(run) for run in runs],
        notes=[*_notes(runs, pairs), *_notes_on_settings(settings)],
        figures=figures,
        settings=settings,
        pairs=list(pairs.values()),
    )


def pairs_of(first: Run, run: Run) -> Pairs:
    """What two runs share: volumes of equal seeds, real volumes."""
    of_seed = dict(zip(run.samples.seeds, run.samples.volume_ids, strict=True))
    same = [
        (name, of_seed[seed])
        for seed, name in zip(first.samples.seeds, first.samples.volume_ids, strict=True)
        if seed in of_seed
    ]
    beside = list(zip(first.samples.volume_ids, run.samples.volume_ids, strict=False))
    held_out = {*first.split.role("val")} & {*run.split.role("val")}
    return Pairs(
        label=run.label,
        generated=same or beside,
        by="seed" if same else "index",
        real=sorted({*first.split.volume_ids} & {*run.split.volume_ids}),
        held_out=sorted(held_out),
    )


class _Features:
    """Features that several figures need, asked for once."""

    def __init__(self, of: FeaturesOf) -> None:
        self._of = of
        self._known: dict[tuple[str, str, tuple[str, ...]], NDArray[np.float32] | None] = {}

    def __call__(self, run: Run, side: str, names: Sequence[str]) -> NDArray[np.float32] | None:
        key = run.label, side, tuple(names)
        if key not in self._known:
            self._known[key] = self._of(run, side, names)
        return self._known[key]


def _difference(name: str, about: About, first: Run, run: Run, pairs: Pairs, features: _Features) -> Difference:
    one, two = first.report.figures.get(name), run.report.figures.get(name)
    if one is None or two is None or one.value is None or two.value is None:
        lacking = [
            label for label, figure in ((first.label, one), (run.label, two)) if figure is None or figure.value is None
        ]
        note = f"{' and '.join(lacking)} {'lack' if len(lacking) > 1 else 'lacks'} it."
        return Difference(label=run.label, value=None, interval=None, better=None, note=note)
    value: float = two.value - one.value
    if one.features is not None:
        interval, note = _of_features(name, first, run, pairs, features)
    elif name == _SHARE:
        interval, note = _of_shares(first, run, pairs)
    else:
        interval, note = None, ""  # no method of which the coverage is known
    if interval is not None:
        value = interval.pop("value")
    blind = name in first.report.blind or name in run.report.blind
    better = None if blind else _better(about, interval)
    return Difference(label=run.label, value=value, interval=interval, better=better, note=note)


def _better(about: About, interval: Mapping[str, Any] | None) -> bool | None:
    """Whether an interval lies on the better side of 0 (true), on the worse one (false), or on both."""
    if interval is None or not about.better or interval["low"] <= 0.0 <= interval["high"]:
        return None
    return bool((interval["high"] < 0.0) == (about.better == "lower"))


def _of_features(
    name: str, first: Run, run: Run, pairs: Pairs, features: _Features
) -> tuple[dict[str, Any] | None, str]:
    """Interval of the difference of a figure on features, with the difference as `value`, and a note."""
    row = about_figures()[name][0] if name in about_figures() else ""
    metric = METRICS[row] if row else None
    if not isinstance(metric, FeatureDistance):
        return None, ""
    given = [each.provenance.config.get("metrics", {}).get(row, {}) for each in (first, run)]
    if given[0] != given[1]:
        return None, f"No interval: settings of metric {row} differ."
    settings = settings_of(metric.settings, given[0], f"evaluate.metrics.{row}")
    held_out = name.removesuffix(RANDOM_SUFFIX).endswith(VAL_SUFFIX)
    real_ids = pairs.held_out if held_out else pairs.real
    one, two = _compared_ids(first, run, pairs)
    if min(len(real_ids), len(one), len(two)) < (least := metric.min_for_interval(settings)):
        counts = f"{len(real_ids)} real, {min(len(one), len(two))} generated"
        return None, f"No interval of so few ({counts}): {least} of each are needed."
    real, generated, other = (
        features(first, REAL, real_ids),
        features(first, GENERATED, one),
        features(run, GENERATED, two),
    )
    if real is None or generated is None or other is None:
        return None, _NO_FEATURES
    try:
        interval = paired_interval(name, real, generated, other, seed=0, settings=settings)
    except ValueError as error:
        return None, f"No interval: {error}"
    wanted = [set(each.split.role("val") if held_out else each.split.volume_ids) for each in (first, run)]
    some = any(names != set(real_ids) for names in wanted)
    return dict(interval), _of_what(first, run, one, two, f"the {len(real_ids)} real volumes that both have" * some)


def _of_shares(first: Run, run: Run, pairs: Pairs) -> tuple[dict[str, Any] | None, str]:
    """Interval of the difference of the share of plausible volumes, with the difference as `value`, and a note."""
    one, two = _compared_ids(first, run, pairs)
    counts = [
        [not each.report.details["anatomy"]["generated"][name]["failed"] for name in names]
        for each, names in ((first, one), (run, two))
    ]
    interval = share_difference(counts[0], counts[1], paired=pairs.by == "seed")
    return dict(interval), _of_what(first, run, one, two, "")


def _compared_ids(first: Run, run: Run, pairs: Pairs) -> tuple[list[str], list[str]]:
    """Generated volumes of both that a difference is taken of: those of equal seeds, else all."""
    if pairs.by == "seed":
        return [one for one, _ in pairs.generated], [two for _, two in pairs.generated]
    return list(first.samples.volume_ids), list(run.samples.volume_ids)


def _of_what(first: Run, run: Run, one: Sequence[str], two: Sequence[str], real: str) -> str:
    """Of which volumes a difference was taken, where it is not of all of both runs; else empty."""
    all_of_both = (len(one), len(two)) == (len(first.samples.volume_ids), len(run.samples.volume_ids))
    parts = [part for part in ("" if all_of_both else f"the {len(one)} volumes of equal seeds", real) if part]
    return f"Of {' and '.join(parts)}." if parts else ""


def _figure(name: str, about: About, runs: Sequence[Run], differences: list[Difference]) -> ComparedFigure:
    floors = [run.report.references["floor"][name] for run in runs if name in run.report.references.get("floor", {})]
    return ComparedFigure(
        name=name,
        title=title_of(name, next(run.report for run in runs if name in run.report.figures)),
        better=about.better,
        values={run.label: run.report.figures[name] for run in runs if name in run.report.figures},
        floor=next((floor for floor in floors if floor.value is not None), None),
        blind={run.label: run.report.blind[name] for run in runs if name in run.report.blind},
        differences=differences,
    )


def _described(run: Run) -> ComparedRun:
    checkpoints = [node.ref.digest for node in run.nodes if node.ref.kind == "checkpoint"]
    return ComparedRun(
        label=run.label,
        name=run.name,
        created=run.provenance.created,
        report=run.ref.digest,
        samples=run.samples_ref.digest,
        checkpoint=checkpoints[0] if checkpoints else None,
        mlflow_run_id=run.mlflow_run_id,
        n_generated=run.report.n_generated,
        n_real=run.report.n_real,
        warnings=run.report.warnings,
    )


def _notes(runs: Sequence[Run], pairs: Mapping[str, Pairs]) -> list[str]:
    """What a reader must know before the figures."""
    first, *others = runs
    notes = []
    if first.report.features.random:
        notes.append(f"Random features: {first.report.features.statement}")
    for run in others:
        shared = pairs[run.label]
        names = f"{first.label} and {run.label}"
        if first.report.n_generated != run.report.n_generated:
            notes.append(
                f"{names} have {first.report.n_generated} and {run.report.n_generated} generated volumes. Distances of different "
                "numbers of volumes do not compare: read the differences, which are taken of equal numbers where seeds are equal."
            )
        if shared.by == "index":
            notes.append(f"{names} share no seed: their volumes stand side by side by their place alone.")
        if set(first.split.volume_ids) != set(run.split.volume_ids):
            notes.append(
                f"{names} were measured on different real volumes ({first.report.n_real} and {run.report.n_real}, "
                f"{len(shared.real)} of them the same): read the differences of distances, which are taken of the same ones."
            )
    return notes


def _notes_on_settings(settings: Sequence[Setting]) -> list[str]:
    """A sentence where figures of one name were not measured in the same way."""
    measured = [row for row in settings if row.stage == "evaluate" and len(row.values) > 1]
    notes = []
    if any(row.key == "recipe" for row in measured):
        notes.append(
            "The reports were made by different recipes of stage evaluate: figures of one name may not mean the same. Evaluate "
            "the samples again with one version of prdit."
        )
    if others := sorted({row.key.split(".")[1] for row in measured if row.key.startswith("metrics.")}):
        notes.append(f"Settings of metrics differ ({', '.join(others)}): figures of these do not mean the same.")
    return notes
