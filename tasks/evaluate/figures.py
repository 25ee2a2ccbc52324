"""The report's document from what the metrics have found."""

from dataclasses import asdict

import numpy as np

from prdit_models.metrics.distances import MIN_VOLUMES
from prdit_models.metrics.extractors.extractor import Extractor
from prdit_models.metrics.metric import METRICS, Comparison, Figure, Setting, Side
from prdit_models.metrics.order import blind
from storage.documents.checkpoint import Intensity
from storage.documents.report import Features, FigureRecord, Report
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.errors import InputError
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.drawn import selection_warnings
from tasks.evaluate.sides import Done
from tasks.model.checkpoint import CheckpointInfo

PROTOCOL = (
    "Real side: every volume of the split, training and validation together (the published protocol); figures ending in "
    "_val use held-out volumes only. Both sides are saturated to the checkpoint's Hounsfield window and mapped to the model's "
    "range."
)
Figures = dict[str, Figure]


def compared(real: Side, generated: Side, setting: Setting, done: Done) -> dict[str, Comparison]:
    """What every metric finds, by its name; `done` is called after each.

    Raises: InputError: two metrics give a figure of the same name, or one gives a value that is not finite.
    """
    found: dict[str, Comparison] = {}
    figures: set[str] = set()
    for name in setting.settings:
        found[name] = METRICS[name].compare(real, generated, setting)
        if doubled := sorted(figures & found[name].figures.keys()):
            raise InputError(
                f"The metric {name!r} gives {', '.join(doubled)}, which another metric gives too. Rename them."
            )
        figures |= found[name].figures.keys()
        for figure, measured in found[name].figures.items():
            if measured.value is not None and not np.isfinite(measured.value):
                raise InputError(
                    f"The metric {name!r} gives {figure} as {measured.value}; expected a finite number, or None with a note that "
                    "says why there is none."
                )
        done(1)
    return found


def figures_of(comparisons: dict[str, Comparison]) -> Figures:
    """The figures of all metrics by name."""
    return {name: figure for comparison in comparisons.values() for name, figure in comparison.figures.items()}


def report_of(
    comparisons: dict[str, Comparison],
    references: dict[str, Figures],
    extractor: Extractor,
    config: EvaluateConfig,
    samples: Samples,
    info: CheckpointInfo,
    split: Split,
) -> Report:
    """What was measured, with the number of volumes behind it and which figures that number rules out."""
    about = {name: each for metric in comparisons for name, each in METRICS[metric].figures.items()}
    num_held_out, notes = len(split.role("val")), []
    if num_held_out < MIN_VOLUMES:
        notes.append(
            f"No held-out figures: the split holds out {num_held_out} volume(s), and a distance needs {MIN_VOLUMES}."
        )
    return Report(
        figures=_records(figures_of(comparisons)),
        references={how: _records(figures) for how, figures in references.items()},
        blind=blind(about, references) if "real" in references else {},
        warnings=[
            *selection_warnings(samples),
            *(sentence for comparison in comparisons.values() for sentence in comparison.warnings),
        ],
        details={name: comparison.details for name, comparison in comparisons.items()},
        features=Features(
            extractor=extractor.name,
            title=extractor.title,
            digest=extractor.digest,
            random=extractor.random,
            width=extractor.width,
            input_size=extractor.input_size,
            statement=extractor.statement,
        ),
        protocol=PROTOCOL,
        intensity=Intensity(**asdict(info.window)),
        volume_size=info.view.size,
        voxel_mm=info.voxel_mm,
        sampler=samples.sampler,
        clipped_fraction_mean=float(np.mean(samples.clipped_fraction)),
        outside_window_fraction_mean=float(np.mean(samples.outside_window_fraction)),
        notes=notes,
        n_real=len(split.volume_ids),
        n_held_out=num_held_out,
        n_generated=len(samples.volume_ids),
    )


def _records(figures: Figures) -> dict[str, FigureRecord]:
    return {name: FigureRecord(**figure.to_json()) for name, figure in figures.items()}
