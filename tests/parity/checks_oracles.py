"""Preprocessing (the product's intensity mappings and our restatement), loader, split and MS-SSIM against the recorded arrays."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from prdit_models.intensity import PUBLISHED_QUANTILES, HounsfieldWindow
from tests.oracles.int_volume import int_volume, sha256_c_order
from tests.oracles.published_preprocessing import (
    CUBE,
    centre_crop,
    lidc_crop,
    lidc_item,
    pool,
    preprocess_lidc,
    preprocess_rad,
    published_split,
    resampled_shape,
    unit_lidc,
)
from tests.parity.measure import Measure, close, exact
from tests.parity.sets import Entry, arrays, side_file

# A value within rounding of a bin edge may fall on either side.
HISTOGRAM_TOLERANCE = 1e-4
FLOAT32_MAPPING = 2e-7


def _summaries(volume: np.ndarray, stored: dict[str, np.ndarray], atol: float) -> list[Measure]:
    """Compare a volume with its stored pooled copy, slices, corners and histogram."""
    measures = []
    for name, expected in stored.items():
        if match := re.match(r"pooled(\d+)$", name):
            found = pool(volume.astype(np.float64), volume.shape[0] // int(match.group(1)))
        elif match := re.match(r"slice_([dhw])(\d+)$", name):
            found = _thinned(np.take(volume, int(match.group(2)), axis="dhw".index(match.group(1))), expected.shape)
        elif name == "slice_mid":
            found = _thinned(volume[volume.shape[0] // 2], expected.shape)
        elif name == "row_mid":
            found = volume[volume.shape[0] // 2, volume.shape[1] // 2]
        elif match := re.match(r"corner(\d+)$", name):
            found = volume[(slice(int(match.group(1))),) * 3]
        elif match := re.match(r"centre(\d+)$", name):
            start, edge = (volume.shape[0] - int(match.group(1))) // 2, int(match.group(1))
            found = volume[(slice(start, start + edge),) * 3]
        elif match := re.match(r"hist(\d+)$", name):
            counts, _ = np.histogram(volume, bins=int(match.group(1)), range=(0.0, 1.0))
            share = float(np.abs(counts - expected).sum() / volume.size)
            measures.append(Measure(name, share, HISTOGRAM_TOLERANCE))
            continue
        else:
            raise AssertionError(f"unknown summary {name!r}")
        measures.append(close(name, found, expected, atol, 1e-6 if expected.dtype == np.float32 else 0.0))
    return measures


def _thinned(plane: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return plane[:: plane.shape[0] // shape[0], :: plane.shape[1] // shape[1]]


def _statistics(volume: np.ndarray, recorded: dict[str, float], atol: float, ddof: int = 0) -> list[Measure]:
    """Minimum, maximum, mean and std; the loader's std was taken by torch, which divides by n - 1."""
    wide = volume.astype(np.float64)
    found = {"min": wide.min(), "max": wide.max(), "mean": wide.mean(), "std": wide.std(ddof=ddof)}
    return [close(name, float(found[name]), value, max(atol, 1e-6)) for name, value in recorded.items()]


def _input_volume(entry: Entry) -> tuple[np.ndarray, list[Measure]]:
    args = entry["args"]
    shape = tuple(args.get("input_shape") or args["int_volume_shape"])
    volume = int_volume(shape, args["int_volume_kind"], args["int_volume_seed"])
    if "input_sha256_int16_c_order" not in entry:
        return volume, []
    return volume, [exact("input volume", sha256_c_order(volume), entry["input_sha256_int16_c_order"])]


def check_lidc(folder: Path, entry: Entry) -> list[Measure]:
    if "official_result" in entry:
        return _refused(entry)
    volume, measures = _input_volume(entry)
    zooms = tuple(entry["args"]["zooms"])
    atol = entry["tolerance"]["atol"]
    crop = lidc_crop(volume, zooms)
    found = unit_lidc(crop)
    measures.append(exact("resampled shape", list(resampled_shape(volume.shape, zooms)), entry["resampled_shape"]))
    measures.append(exact("dtype", str(found.dtype), entry["output_dtype_on_disk"]))
    measures += _statistics(found, entry["stats"], atol) + _summaries(found, arrays(folder, entry), atol)
    ours = (_seen("published-lidc", crop, CUBE) + 1.0) / 2.0
    return measures + [_ours(m) for m in _statistics(ours, entry["stats"], atol)] + _ours_summaries(ours, folder, entry)


def _refused(entry: Entry) -> list[Measure]:
    """The recorded case, `(shape) at (zooms) mm -> shape`: edges agree and the restatement refuses it too."""
    text = entry["args"]["equivalent_to"]
    shape, zooms = (tuple(float(n) for n in part.split(",")) for part in re.findall(r"\(([^)]*)\)", text))
    edges = [int(n) for n in text.split("->")[1].replace("mm", "").split("x")]
    integral = tuple(int(n) for n in shape)
    try:
        preprocess_lidc(np.zeros(integral, dtype=np.int16), zooms)
    except ValueError:
        refused = True
    else:
        refused = False
    return [exact("edges", list(resampled_shape(integral, zooms)), edges), exact("refused", refused, True)]


def check_rad(folder: Path, entry: Entry) -> list[Measure]:
    volume, measures = _input_volume(entry)
    args, atol = entry["args"], entry["tolerance"]["atol"]
    found = preprocess_rad(volume, tuple(args["target"]), args["upper_quantile"])
    measures.append(exact("dtype", str(found.dtype), entry["dtype"]))
    measures += _statistics(found, entry["stats"], atol) + _summaries(found, arrays(folder, entry), atol)
    if args["upper_quantile"] != PUBLISHED_QUANTILES["published-rad"]:
        return measures  # a setting of the published script that no published training used
    ours = _seen("published-rad", centre_crop(volume, CUBE), args["target"][0])
    return measures + [_ours(m) for m in _statistics(ours, entry["stats"], atol)] + _ours_summaries(ours, folder, entry)


def _seen(mapping: str, crop: np.ndarray, size: int) -> np.ndarray:
    """The product's mapping of a box in HU."""
    window = HounsfieldWindow.of_mapping(-1000.0, 1000.0, mapping)
    return window.of_scan(torch.from_numpy(np.ascontiguousarray(crop)), size).numpy()


def _ours(measure: Measure) -> Measure:
    return replace(measure, what=f"product's mapping, {measure.what}")


def _ours_summaries(volume: np.ndarray, folder: Path, entry: Entry) -> list[Measure]:
    # float32 throughout, where the published LIDC script is in float64
    atol = max(entry["tolerance"]["atol"], FLOAT32_MAPPING)
    return [_ours(measure) for measure in _summaries(volume, arrays(folder, entry), atol)]


def check_lidc_item(folder: Path, entry: Entry) -> list[Measure]:
    volume, measures = _input_volume(entry)
    wide = volume.astype(np.float64)
    unit = (wide - wide.min()) / (wide.max() - wide.min())
    item = lidc_item(unit, entry["args"]["img_size"])
    atol = entry["tolerance"]["atol"]
    measures.append(exact("shape", list(item.shape), entry["shape"]))
    return measures + _statistics(item, entry["stats"], atol, ddof=1) + _summaries(item[0], arrays(folder, entry), atol)


def check_splits(folder: Path, entry: Entry) -> list[Measure]:
    recorded = side_file(folder, entry)
    measures = []
    for label, case in recorded["cases"].items():
        values = dict(part.split("=") for part in label.split(","))
        ratio = None if values["val_ratio"] == "None" else float(values["val_ratio"])
        size = None if values["val_size"] == "None" else int(values["val_size"])
        found = published_split(recorded["names"], int(values["seed"]), ratio, size)
        measures.append(exact(label, found, (case["train"], case["val"])))
    return measures
