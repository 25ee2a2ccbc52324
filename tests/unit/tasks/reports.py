"""Reports by hand, for tests of what is made of them."""

from typing import Any

from storage.documents.checkpoint import Intensity, View
from storage.documents.report import Features, FigureRecord, Report
from storage.documents.samples import Redraw, SamplerSettings, Samples, Verdict


def figure(value: float | None, n: int = 4, **changes: Any) -> FigureRecord:
    """A figure of n real and n generated volumes."""
    plain: dict[str, Any] = {"unit": "", "features": None, "interval": None, "note": ""}
    return FigureRecord(value=value, n_real=n, n_generated=n, **plain | changes)


def report(figures: dict[str, FigureRecord], **changes: Any) -> Report:
    """A report of 8³ volumes with these figures."""
    values: dict[str, Any] = {
        "references": {},
        "blind": {},
        "warnings": [],
        "details": {},
        "features": Features(
            extractor="random",
            title="net",
            digest="sha256:0",
            random=True,
            width=4,
            input_size=None,
            statement="a statement.",
        ),
        "protocol": "All volumes.",
        "intensity": Intensity(lower_hu=-1000, upper_hu=1000, model_lower=-1, model_upper=1, mapping="window"),
        "volume_size": 8,
        "voxel_mm": 16.0,
        "sampler": SamplerSettings(
            name="predictor-corrector",
            schedule="linear",
            num_steps=2,
            evaluations=2,
            predictor_step=1,
            parametrization="image",
            output="image",
            label=None,
            guidance_scale=1.0,
            process=None,
            seed=3,
            weights="ema",
            precision="fp32",
        ),
        "clipped_fraction_mean": 0.0,
        "outside_window_fraction_mean": 0.0,
        "notes": [],
        "n_real": 4,
        "n_held_out": 1,
        "n_generated": 4,
    }
    return Report(figures=figures, **values | changes)


def samples(count: int = 3, **changes: Any) -> Samples:
    """A list of samples, each drawn once."""
    values: dict[str, Any] = {
        "store": "samples.zarr",
        "num_asked": count,
        "volume_ids": [f"g{k}" for k in range(count)],
        "seeds": list(range(count)),
        "sampler": report({}).sampler,
        "clipped_fraction": [0.0] * count,
        "outside_window_fraction": [0.25] * count,
        "verdicts": [Verdict(plausible=True) for _ in range(count)],
        "redraw": Redraw(most=0, judged=True, num_redrawn=0, tries=[1] * count),
        "excluded": [],
        "view": View(size=8, edge=16, centre=None),
        "intensity": report({}).intensity,
        "spacing_mm": 16.0,
    }
    return Samples(**values | changes)
