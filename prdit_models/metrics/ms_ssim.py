"""Multi-scale structural similarity of pairs of volumes: samples of a model that has collapsed are all alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prdit_models.metrics.metric import About, Comparison, Figure, Hu, Setting, Side, rounded
from prdit_models.metrics.random_pairs import pair_spread, random_pairs
from prdit_models.metrics.reading import Recent
from prdit_models.metrics.spread import MIN_VOLUMES, Spread

PUBLISHED_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
KERNEL_SIZE = 3
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_SLAB = 8  # planes that are filtered together: at 128³ they stay in the processor's cache
_MIN_SCALES = 2
_REFERENCE_PAIRS = 40
_FEW = f"Fewer than {MIN_VOLUMES} volumes on a side: the means of so few pairs differ by chance."


def num_scales(edge: int) -> int:
    """Scales that volumes of an edge have, at most the published five (from 48 voxels on): the coarsest must hold the kernel."""
    return max((k for k in range(1, len(PUBLISHED_WEIGHTS) + 1) if edge >> (k - 1) >= KERNEL_SIZE), default=0)


def ms_ssim(first: Tensor, second: Tensor, data_range: float = 1.0, scales: int = len(PUBLISHED_WEIGHTS)) -> float:
    """MS-SSIM of two volumes, from 0 to 1 (equal).

    Gaussian kernel of 3 voxels and σ 1.5 (valid part only), means of 2³ blocks between the scales, negative terms set to 0, as
    published; with fewer scales the weights of the first ones, divided by their sum.

    Args:
        first, second: float32, shape (D, H, W).
        data_range: of the values; the published evaluation has 1 for values in [-1, 1].
        scales: the edges halved `scales` - 1 times must hold the kernel (`num_scales`).
    Raises: ValueError: shapes that differ, or too many scales for them.
    Source: Wang et al., Multiscale structural similarity (2003); MONAI's 3D form; SPEC §6.
    """
    if first.shape != second.shape or first.ndim != 3 or not 1 <= scales <= num_scales(min(first.shape)):
        raise ValueError(
            f"ms_ssim got volumes {tuple(first.shape)} and {tuple(second.shape)} and {scales} scales; expected two equal shapes "
            f"(D, H, W), 1 to {len(PUBLISHED_WEIGHTS)} scales, and edges of at least {KERNEL_SIZE} voxels at the coarsest scale."
        )
    weights = np.array(PUBLISHED_WEIGHTS[:scales]) / (sum(PUBLISHED_WEIGHTS[:scales]) if scales < 5 else 1.0)
    value = 1.0
    for scale, weight in enumerate(weights):
        last = scale == scales - 1
        value *= max(_term(first, second, data_range, with_luminance=last), 0.0) ** float(weight)
        if not last:
            first, second = (nn.functional.avg_pool3d(x[None], 2)[0] for x in (first, second))
    return value


def _term(first: Tensor, second: Tensor, data_range: float, *, with_luminance: bool) -> float:
    """Mean of the contrast-structure term, or of SSIM (times luminance).

    The variances and the covariance come from those of sum and difference: v₁ + v₂ = (v₊ + v₋)/2, 2·cov = (v₊ - v₋)/2.
    """
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    planes = len(first) - KERNEL_SIZE + 1
    total, count = 0.0, 0
    for start in range(0, planes, _SLAB):
        stop = min(start + _SLAB, planes) + KERNEL_SIZE - 1
        both = torch.stack([first[start:stop] + second[start:stop], first[start:stop] - second[start:stop]])
        filtered = _smooth(torch.cat([both, both.square()]))
        means = filtered[:2].square_()
        variances = filtered[2:].sub_(means)
        term = _ratio(variances, c2)
        if with_luminance:
            term *= _ratio(means, c1)
        total += float(term.sum(dtype=torch.float64))
        count += term.numel()
    return total / count


def _ratio(pair: Tensor, constant: float) -> Tensor:
    return (pair[0] - pair[1]).mul_(0.5).add_(constant).div_((pair[0] + pair[1]).mul_(0.5).add_(constant))


def _smooth(volumes: Tensor) -> Tensor:
    """Separable Gaussian of volumes (N, D, H, W), valid part only."""
    offsets = np.arange(KERNEL_SIZE) - (KERNEL_SIZE - 1) / 2
    kernel = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    for axis in (1, 2, 3):
        length = volumes.shape[axis] - KERNEL_SIZE + 1
        moved = [volumes.narrow(axis, k, length) for k in range(KERNEL_SIZE)]
        volumes = moved[0] * float(kernel[0] / kernel.sum())
        for each, weight in zip(moved[1:], kernel[1:] / kernel.sum(), strict=True):
            volumes.add_(each, alpha=float(weight))
    return volumes


@dataclass(frozen=True)
class MsSsimSettings:
    """Settings of MS-SSIM.

    Attributes:
        num_pairs: random pairs of each side, all where there are no more.
        data_range: of values in the model's range; 1 as published, 2 is the range of a model that works in [-1, 1].
    """

    num_pairs: int = 200
    data_range: float = 1.0

    def __post_init__(self) -> None:
        if self.num_pairs < 1 or not self.data_range > 0:
            raise ValueError(
                f"num_pairs is {self.num_pairs} and data_range {self.data_range}; expected at least one pair and a positive range."
            )


def _about(scales: int) -> dict[str, About]:
    """The three figures of a number of scales; the published number has the plain names."""
    words, suffix, source = "", "", "Wang et al. (2003), data range 1 and kernel of 3 voxels as in PRDiT's evaluation"
    if scales < len(PUBLISHED_WEIGHTS):
        words, suffix, source = (
            f", {scales} scales",
            f"_{scales}_scales",
            "Wang et al. (2003), weights of the first scales only",
        )
    real = About(f"MS-SSIM of two real volumes{words}", "", source, "Several volumes of one patient raise it.")
    caveat = "Noise lowers it as variety does: read it beside that of the real volumes."
    return {
        f"ms_ssim{suffix}": About(f"MS-SSIM of two samples{words}", "", source, caveat),
        f"ms_ssim{suffix}_real": real,
        f"ms_ssim{suffix}_gap": About(
            f"MS-SSIM, samples and real volumes apart{words}", "lower", source, "Compares two means."
        ),
    }


class MsSsim:
    """Mean MS-SSIM of random pairs of samples, beside that of random pairs of real volumes; each pair once."""

    settings = MsSsimSettings
    figures: Mapping[str, About] = {
        name: about
        for scales in range(len(PUBLISHED_WEIGHTS), _MIN_SCALES - 1, -1)
        for name, about in _about(scales).items()
    }

    def of_volume(self, hu: Hu, setting: Setting) -> None:
        """Nothing: the pairs' volumes are read again."""

    def compare(self, real: Side, generated: Side, setting: Setting) -> Comparison:
        """Three figures; volumes below 48 voxels have fewer scales, and figures of another name.

        `details`: `num_scales` and for each side `{num_pairs, values}`.
        """
        scales = num_scales(setting.size)
        if scales < _MIN_SCALES:
            note = f"Volumes of {setting.size} voxels have no second scale of {KERNEL_SIZE} voxels."
            sizes: dict[str, Any] = {"n_real": len(real.ids), "n_generated": len(generated.ids)}
            return Comparison({name: Figure(None, **sizes, note=note) for name in _about(len(PUBLISHED_WEIGHTS))})
        found = {name: _measured(side, setting, scales) for name, side in (("generated", generated), ("real", real))}
        values = {name: each for name, (each, _) in found.items()}
        spreads = {name: each for name, (_, each) in found.items()}
        details = {"num_scales": scales} | {
            side: {"num_pairs": len(each), "values": rounded(each)} for side, each in values.items()
        }
        return Comparison(_figures(values, spreads, (len(real.ids), len(generated.ids)), scales), details=details)


def _measured(side: Side, setting: Setting, scales: int) -> tuple[list[float], Spread | None]:
    """MS-SSIM of random pairs of a side, and the variance of their mean."""
    settings: MsSsimSettings = setting.settings["ms_ssim"]
    most = min(settings.num_pairs, _REFERENCE_PAIRS) if setting.reference else settings.num_pairs
    pairs = random_pairs(len(side.ids), most, setting.seed)
    read, values = Recent(side.read), []
    for pair in pairs:
        first, second = (setting.window.to_model(torch.from_numpy(read(side.ids[place]))) for place in pair)
        values.append(ms_ssim(first, second, settings.data_range, scales))
    return values, pair_spread(values, pairs) if setting.num_subsamples else None


def _figures(
    values: dict[str, list[float]], spreads: dict[str, Spread | None], sizes: tuple[int, int], scales: int
) -> dict[str, Figure]:
    """The figures of `_about`, in its order."""
    means = {name: float(np.mean(each)) for name, each in values.items()}
    notes = {name: f"Mean of {len(each)} random pairs." for name, each in values.items()}
    drawn, real = spreads["generated"], spreads["real"]
    gap, few = abs(means["generated"] - means["real"]), min(sizes) < MIN_VOLUMES
    found: list[tuple[float | None, Spread | None, str]] = [
        (means["generated"], drawn, notes["generated"]),
        (means["real"], real, notes["real"]),
        (None if few else gap, drawn + real if drawn and real else None, _FEW if few else ""),
    ]
    return {
        name: Figure(
            value,
            *sizes,
            interval=spread.interval(value, 0.0, 1.0) if spread and value is not None else None,
            note=note,
        )
        for name, (value, spread, note) in zip(_about(scales), found, strict=True)
    }


METRIC = MsSsim()
