"""How the samples came about: what was asked for, judged, drawn again and left out; a selection changes what figures mean."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from prdit_models.metrics.anatomy import LIMITS
from storage.documents.samples import Samples
from tasks.evaluate.formats import percent


def selection_warnings(samples: Samples) -> list[str]:
    """Sentences for the top of the report where the samples are not the first drawing of every seed."""
    redraw, found = samples.redraw, []
    if redraw.num_redrawn:
        why = "they were not finite or could be no chest" if redraw.judged else "they were not finite"
        found.append(
            f"The samples are selected: {redraw.num_redrawn} of {samples.num_asked} volumes were drawn again, at most "
            f"{_times(redraw.most)} each, because {why}. The figures are those of the volumes that "
            "were kept, not of every volume that the model draws."
        )
    if samples.excluded:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in _reasons(samples).items())
        found.append(f"{len(samples.excluded)} of the {samples.num_asked} volumes asked for are missing ({reasons}).")
    return found


def drawn_table(samples: Samples) -> list[tuple[str, str]]:
    """(what, how much) of the drawing."""
    redraw, plausible = samples.redraw, [verdict.plausible for verdict in samples.verdicts]
    judged = [verdict for verdict in plausible if verdict is not None]
    rows = [
        ("Volumes asked for", str(samples.num_asked)),
        ("Kept", str(len(samples.volume_ids))),
        (
            "Could be a chest, of those kept",
            f"{sum(judged)} of {len(judged)}" if judged else "not judged when they were drawn",
        ),
    ]
    if failed := Counter(LIMITS[name].title if name in LIMITS else name for v in samples.verdicts for name in v.failed):
        rows.append(
            ("Outside the limits of", ", ".join(f"{title} ({count})" for title, count in failed.most_common(4)))
        )
    what = "not finite, or could be no chest" if redraw.judged else "not finite"
    policy = (
        f"a volume that is {what}, at most {_times(redraw.most)}" if redraw.most else "never (sample.redraw.most is 0)"
    )
    rows.append(("Drawn again by policy", policy))
    if redraw.most:
        tries = Counter(redraw.tries)
        spread = ", ".join(f"{count} after {number}" for number, count in sorted(tries.items()))
        rows.append(("Drawings per volume that was kept", spread))
    for reason, count in _reasons(samples).items():
        rows.append((f"Left out: {reason}", str(count)))
    outside = np.array(samples.outside_window_fraction)
    rows.append(
        (
            "Voxels beyond the Hounsfield window, which saturate (air lies at its lower end)",
            f"{percent(outside.mean())}; largest share of a volume {percent(outside.max())}",
        )
    )
    rows.append(("Voxels clamped to int16", percent(float(np.mean(samples.clipped_fraction)))))
    return rows


def sampler_table(samples: Samples) -> list[tuple[str, str]]:
    """(setting, value) of the sampler."""
    sampler = samples.sampler
    rows = [
        (
            "Sampler",
            f"{sampler.name}, {sampler.schedule} schedule, {sampler.evaluations} evaluations of the network per volume",
        ),
        ("Parametrization, output", f"{sampler.parametrization}, {sampler.output}"),
        ("Weights, precision", f"{sampler.weights}, {sampler.precision}"),
        ("Seed", f"{sampler.seed}; volume i is drawn from a seed derived from this and i"),
    ]
    if sampler.label is not None:
        rows.append(("Label", f"{sampler.label}, guidance {sampler.guidance_scale:g}"))
    if sampler.conditions:
        rows.append(("Conditions", f"{named(sampler.conditions)}, guidance {sampler.guidance_scale:g}"))
    if sampler.mask is not None:
        source = f"volume {sampler.mask.volume_id}" if sampler.mask.volume_id else f"file ({sampler.mask.format})"
        rows.append(("Mask", f"of a {source}, guidance {sampler.guidance_scale:g}"))
    return rows


def named(conditions: Mapping[str, float | str]) -> str:
    """Names and values of what samples were asked to be like."""
    texts = {name: value if isinstance(value, str) else f"{value:g}" for name, value in conditions.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _reasons(samples: Samples) -> Counter[str]:
    return Counter(excluded.reason.replace("_", " ") for excluded in samples.excluded)
