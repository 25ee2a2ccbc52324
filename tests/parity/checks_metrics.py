"""FID, MMD, MS-SSIM and the feature extractor against the recorded values."""

from pathlib import Path

import numpy as np
import torch

from prdit_models.metrics.extractors.medicalnet import MedicalNet
from prdit_models.metrics.extractors.resnet import weights_digest
from prdit_models.metrics.fid import frechet_distance
from prdit_models.metrics.mmd import maximum_mean_discrepancy, median_squared_distance
from prdit_models.metrics.ms_ssim import KERNEL_SIZE, ms_ssim
from tests.parity.measure import Measure, close, exact, relative
from tests.parity.placement import placed
from tests.parity.sets import Entry, arrays, load_manifest, shapes_of, tensor, weights


def check_fid(folder: Path, entry: Entry) -> list[Measure]:
    stored, tolerance = arrays(folder, entry), entry["tolerance"]
    value = frechet_distance(stored["A"], stored["B"])
    reference = entry["reference_value_svd_of_factors"]
    measures = [
        relative("reference", value, reference, tolerance["rtol_vs_reference"]),
        close("distance to itself", frechet_distance(stored["A"], stored["A"]), 0.0, 1e-9 * max(1.0, reference)),
    ]
    if entry.get("official_value") is not None:
        measures.append(relative("published code", value, entry["official_value"], tolerance["rtol_vs_official"]))
    return measures


def check_mmd(folder: Path, entry: Entry) -> list[Measure]:
    stored, rtol = arrays(folder, entry), entry["tolerance"]["rtol"]
    real, generated = stored["X"], stored["Y"]
    result = maximum_mean_discrepancy(real, generated, block_rows=max(1, len(real) // 3))
    measures = [
        relative("median", median_squared_distance(real), entry["median_sq_distance"], rtol),
        relative("gamma", result.gamma, entry["gamma"], rtol),
        relative("MMD²", result.mmd2, entry["mmd2"], rtol),
        relative("MMD", result.mmd, entry["mmd"], rtol),
    ]
    for name in (name for name in entry if name.startswith("mmd2_gamma_")):
        fixed = maximum_mean_discrepancy(real, generated, gamma=float(name.removeprefix("mmd2_gamma_")))
        measures.append(relative(name, fixed.mmd2, entry[name], rtol))
    return measures


def check_medicalnet(folder: Path, entry: Entry) -> list[Measure]:
    stored, tolerance = arrays(folder, entry), entry["tolerance"]
    model = MedicalNet()
    model.load_state_dict(weights(folder, entry, shapes_of(model)))
    names = load_manifest(folder, entry["names_file"])["state_dict"]
    rows = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in model.state_dict().items()
    ]
    digest = weights_digest(model)
    features = placed(model)(tensor(stored["x"]))
    return [
        exact("keys, shapes, order", rows, names),
        exact("digest of the weights", digest, "sha256:" + entry["weights"]["sha256_state"]),
        exact("width", np.array(features.shape), np.array(stored["features"].shape)),
        close("features", features, stored["features"], tolerance["suggested_atol"], tolerance["suggested_rtol"]),
    ]


def check_ms_ssim(folder: Path, entry: Entry) -> list[Measure]:
    stored, args = arrays(folder, entry), entry["args"]
    a, b, noise = (stored[name] for name in ("a", "b", "noise"))
    pairs = {
        "a_b": (a, b),
        "a_a": (a, a),
        "a_noisy": (a, a + noise),
        "minus1to1_a_b": (2 * a - 1, 2 * b - 1),
        "noise_noise": (noise, np.flip(noise, axis=2)),
        "batch2": (np.concatenate([a, b]), np.concatenate([b, a + noise])),
    }
    measures = [exact("kernel size", np.array(KERNEL_SIZE), np.array(args["kernel_size"]))]
    for row in entry["pairs"]:
        first, second = pairs[row["pair"]]
        found = [
            ms_ssim(torch.from_numpy(p[0].copy()), torch.from_numpy(q[0].copy()), args["data_range"])
            for p, q in zip(first, second, strict=True)
        ]
        measures.append(close(row["pair"], found, row["monai_f64"], entry["tolerance"]["atol"]))
    return measures
