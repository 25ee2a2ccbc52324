"""The checks of the drift gate that look at each new volume, and at the batch as a whole: HU, anatomy, spacing, orientation."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prdit_models.metrics.anatomy import LIMITS
from prdit_models.metrics.histogram import area_between
from tasks.drift.config import DriftConfig
from tasks.drift.finding import Finding, named
from tasks.drift.measure import ANATOMY, BIN_HU, Cells, Measured
from tasks.drift.reference import FLOORS, Reference, phantom_chest, shares

_TITLES = {
    "air_hu": "peak of the air around the body",
    "muscle_hu": "peak of muscle and organs",
    "slice_mm": "slice distance",
    "pixel_mm": "pixel distance",
} | {name: limit.title for name, limit in LIMITS.items()}
_UNITS = {"air_hu": " HU", "muscle_hu": " HU", "slice_mm": " mm", "pixel_mm": " mm"} | {
    name: f" {limit.unit}".rstrip() for name, limit in LIMITS.items()
}
_SHIFT = "HU may be shifted or scaled: look at RescaleSlope and RescaleIntercept of the export"
_HINTS = {
    "air_hu": _SHIFT,
    "muscle_hu": _SHIFT,
    "tissue_hu": _SHIFT,
    "lung_hu": _SHIFT,
    "lung_taper": "the scan may be upside down, or show no whole chest",
}
_AXES = ("up and down", "front and back", "left and right")
_SHARE_FROM = 10  # volumes: fewer may all be of one patient
_HISTOGRAM_FACTOR = 1.5  # of the largest distance that a listed volume has from the others


@dataclass(frozen=True)
class Batch:
    """New volumes: what is measured of each by id, and patient keys where they are known."""

    measured: Mapping[str, Measured]
    patients: Mapping[str, str]


def absolute_checks(batch: Batch, reference: Reference, config: DriftConfig, *, alone: bool) -> list[Finding]:
    """What holds for any chest CT: HU of air and muscle, the limits of a chest, the right way round; spacing where `alone`.

    Limits of a chest that most of the listed volumes do not keep (a store of another region, or of a smaller box) do not count.
    """
    findings = [
        *_beyond(batch, "hu_shift", "air_hu", config.air_hu),
        *_beyond(batch, "hu_shift", "muscle_hu", config.muscle_hu),
        *_flips(batch, reference, config, alone=alone),
    ]
    for name in ANATOMY:
        if alone or reference.passing(name) > 0.5:
            limit = LIMITS[name]
            findings += _beyond(batch, "anatomy", name, (limit.low, limit.high), needed=limit.needed)
    if alone:
        findings += _beyond(batch, "spacing", "slice_mm", config.slice_mm)
        findings += _beyond(batch, "spacing", "pixel_mm", config.pixel_mm)
    return [*findings, *_one_patient(batch, config)]


def without_consequences(findings: list[Finding]) -> list[Finding]:
    """The findings without those that follow from shifted HU, and without a second one about the same figure and volumes."""
    shifted = {volume for one in findings if one.name == "hu_shift" for volume in one.volumes}
    kept: list[Finding] = []
    known: set[tuple[str, tuple[str, ...]]] = set()
    for one in findings:
        what = (one.sentence.partition(":")[0], one.volumes)
        of_a_figure = one.name in ("anatomy", "figures")
        if not of_a_figure or not (what in known or shifted >= set(one.volumes)):
            kept.append(one)
        known.add(what)
    return kept


def relative_checks(batch: Batch, reference: Reference, config: DriftConfig) -> list[Finding]:
    """What holds for the store: each figure near its own, spacing within its range, the histogram of the batch as its own."""
    findings = []
    for name in FLOORS:
        if len(reference.figures.get(name, ())) >= config.min_reference:
            middle, spread = reference.centre_and_spread(name)
            allowed = (middle - config.spread * spread, middle + config.spread * spread)
            findings += _beyond(batch, "figures", name, allowed, of="of the store's volumes")
    for name in ("slice_mm", "pixel_mm"):
        if values := reference.figures.get(name):
            allowed = (min(values) / config.spacing_factor, max(values) * config.spacing_factor)
            findings += _beyond(batch, "spacing", name, allowed, of="of the store's scans")
    return findings + _histogram(batch, reference, config)


def _beyond(
    batch: Batch, check: str, name: str, allowed: tuple[float, float], *, needed: bool = False, of: str = ""
) -> list[Finding]:
    """At most one finding: the volumes whose figure is beyond what is allowed, the furthest one's value."""
    low, high = allowed
    values = {volume: one.figures[name] for volume, one in batch.measured.items()}
    lost = [volume for volume, value in values.items() if value is None and needed]
    outside = {v: value for v, value in values.items() if value is not None and not low <= value <= high}
    if not outside and not lost:
        return []
    worst = max(outside.values(), key=lambda value: max(low - value, value - high), default=float("nan"))
    limit = high if worst > high else low
    count = len(outside) + len(lost)
    number = f"{_number(worst)}{_UNITS[name]}" if outside else "not defined"
    bounds = f"{_number(low)} to {_number(high)}{_UNITS[name]}" + (f" {of}" if of else "")
    hint = f"; {_HINTS[name]}" if name in _HINTS else ""
    volumes = (*outside, *lost)
    sentence = (
        f"{_TITLES[name][0].upper()}{_TITLES[name][1:]}: {number}, allowed {bounds}, in {count} of {len(values)} volumes "
        f"({named(volumes)}){hint}."
    )
    return [Finding(check, worst, limit, sentence, volumes)]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _flips(batch: Batch, reference: Reference, config: DriftConfig, *, alone: bool) -> list[Finding]:
    """Volumes that are more like the mean chest when they are flipped along an axis.

    A single volume whose left and right cannot be told (a heart in the middle) passes; see docs/decisions/0017-drift-gate.md.
    """
    findings = []
    margins = {}
    for volume, one in batch.measured.items():
        template = reference.mean if not alone and reference.mean is not None else phantom_chest(len(one.cells))
        as_is = _correlation(one.cells, template)
        margins[volume] = [as_is - _correlation(np.flip(one.cells, axis), template) for axis in range(3)]
    for axis, name in enumerate(_AXES):
        worst = {volume: found[axis] for volume, found in margins.items() if found[axis] < -config.flip_margin}
        if worst:
            low = min(worst.values())
            than = "the mean of phantoms" if alone else "the mean of the store"
            sentence = (
                f"Flipped: {name} seem exchanged in {len(worst)} of {len(margins)} volumes ({named(list(worst))}): their "
                f"correlation with {than} gains {-low:.3g} by a flip, allowed {config.flip_margin:g}. Compare the picture with its "
                "marks R and L, and the orientation in the header with the scanner's."
            )
            findings.append(Finding("flipped", low, -config.flip_margin, sentence, tuple(worst)))
    return findings


def _correlation(first: Cells, second: Cells) -> float:
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt(np.square(a).sum(dtype=np.float64) * np.square(b).sum(dtype=np.float64)))
    return float((a * b).sum(dtype=np.float64)) / scale if scale else 0.0


def _histogram(batch: Batch, reference: Reference, config: DriftConfig) -> list[Finding]:
    """At most one finding: how far the batch's histogram is from the store's."""
    rows = np.array(reference.histograms)
    total = rows.sum(0)
    own = max(area_between(row, (total - row) / (len(rows) - 1), BIN_HU) for row in rows)
    limit = max(config.histogram_hu, _HISTOGRAM_FACTOR * own)
    mean = np.mean([shares(one.histogram) for one in batch.measured.values()], axis=0)
    found = area_between(mean, total / len(rows), BIN_HU)
    if found <= limit:
        return []
    sentence = (
        f"HU histogram: {found:.3g} HU from the store's (Wasserstein-1), allowed {limit:.3g}; the furthest listed volume is at "
        f"{own:.3g}. {_SHIFT}, or the batch is of another protocol."
    )
    return [Finding("hu_histogram", found, limit, sentence)]


def _one_patient(batch: Batch, config: DriftConfig) -> list[Finding]:
    if len(batch.measured) < _SHARE_FROM or not batch.patients:
        return []
    patient, number = Counter(batch.patients.values()).most_common(1)[0]
    share = number / len(batch.measured)
    if share <= config.patient_share:
        return []
    volumes = tuple(volume for volume, whose in batch.patients.items() if whose == patient)
    sentence = (
        f"One patient ({patient[:12]}…) has {number} of the {len(batch.measured)} volumes ({share:.0%}), allowed "
        f"{config.patient_share:.0%}: are PatientIDs right?"
    )
    return [Finding("one_patient", share, config.patient_share, sentence, volumes)]
