from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import linalg

from prdit_models.metrics.extractors.medicalnet import MedicalNet, load_medicalnet
from prdit_models.metrics.extractors.random import random_medicalnet
from prdit_models.metrics.extractors.resnet import weights_digest
from prdit_models.metrics.fid import frechet_distance
from prdit_models.metrics.mmd import maximum_mean_discrepancy, median_squared_distance
from tests.extractors import sha256_of


def _features(n: int, d: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + generator.normal(size=d)


@pytest.mark.parametrize(("n", "m"), [(60, 50), (300, 90), (20, 400)])
def test_fid_equals_the_matrix_root_form(n: int, m: int) -> None:
    real, generated = _features(n, 12, 0), _features(m, 12, 1)
    s1, s2 = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = linalg.sqrtm(s1 @ s2)
    expected = ((real.mean(0) - generated.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root.real)
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-8)


def test_fid_of_a_shift_and_of_a_scaling() -> None:
    real = _features(40, 100, 2)  # fewer volumes than features
    shift = np.arange(100) / 100
    assert frechet_distance(real, real + shift) == pytest.approx(float(shift @ shift), rel=1e-6)
    centred = real - real.mean(0)
    variance = float(np.square(centred).sum() / 39)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * variance, rel=1e-9)


def test_mmd_by_the_definition() -> None:
    real, generated = _features(23, 5, 3), _features(17, 5, 4)

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    ordered = np.sort(distances(real, real).ravel())
    median = ordered[(ordered.size - 1) // 2]
    gamma = 1 / (2 * median)
    mmd2 = sum(
        sign * np.exp(-gamma * distances(a, b)).mean()
        for sign, a, b in ((1, real, real), (1, generated, generated), (-2, real, generated))
    )
    for rows in (1, 6, 512):
        result = maximum_mean_discrepancy(real, generated, block_rows=rows)
        assert result.gamma == pytest.approx(gamma, rel=1e-12)
        assert result.mmd2 == pytest.approx(mmd2, rel=1e-9)
        assert result.mmd == pytest.approx(np.sqrt(mmd2), rel=1e-9)


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_lower_median_counts_the_zeros(n: int) -> None:
    points = 1e3 + np.random.default_rng(n).normal(size=(n, 3))  # far from the origin: cancellation would show
    matrix = ((points[:, None] - points[None]) ** 2).sum(-1)
    assert median_squared_distance(points, block_rows=2) == pytest.approx(
        float(torch.from_numpy(matrix).flatten().median()), rel=1e-9
    )


def test_identical_sets_have_no_distance() -> None:
    features = _features(30, 8, 5)
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-10)
    assert maximum_mean_discrepancy(features, features).mmd == pytest.approx(0.0, abs=1e-7)


def test_metrics_refuse_what_they_cannot_compare() -> None:
    good = _features(5, 4, 6)
    bad = good.copy()
    bad[1, 2] = np.nan
    for metric in (frechet_distance, maximum_mean_discrepancy):
        with pytest.raises(ValueError, match="generated features hold 1 volume"):
            metric(good, good[:1])
        with pytest.raises(ValueError, match="real features of 1 volume"):
            metric(bad, good)
        with pytest.raises(ValueError, match="width 4 and 3"):
            metric(good, good[:, :3])
    with pytest.raises(ValueError, match="bandwidth is undefined"):
        maximum_mean_discrepancy(good[:2], good)
    with pytest.raises(ValueError, match="gamma is 0"):
        maximum_mean_discrepancy(good, good, gamma=0.0)


@pytest.fixture(scope="module")
def network() -> MedicalNet:
    return random_medicalnet(5)


def test_seed_decides_the_weights(network: MedicalNet) -> None:
    assert weights_digest(random_medicalnet(5)) == weights_digest(network)
    assert weights_digest(random_medicalnet(6)) != weights_digest(network)


def test_features_do_not_depend_on_the_batch_or_on_train(network: MedicalNet) -> None:
    x = torch.rand(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = network.train()(x)
    assert together.shape == (3, 2048)
    torch.testing.assert_close(network(x[1:2]), together[1:2], atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(ValueError, match=r"\(B, 1, D, H, W\)"):
        network(x[0])


def test_convolutions_keep_float32_on_a_gpu(network: MedicalNet) -> None:
    """CUDA's default rounds inputs of convolutions to TF32 (10 bits), and features would differ from the CPU's by 1e-3."""
    seen: list[str] = []
    handle = network.layer4.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before = torch.backends.cudnn.conv.fp32_precision
    assert before != "ieee"
    network(torch.zeros(1, 1, 16, 16, 16))
    handle.remove()
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_weights_come_back_from_both_formats(network: MedicalNet, tmp_path: Path) -> None:
    save_file(network.state_dict(), plain := tmp_path / "weights.safetensors")
    prefixed = {f"module.{key}": value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save({"state_dict": prefixed}, published := tmp_path / "resnet_50.pth")
    for path in (plain, published):
        assert weights_digest(load_medicalnet(path, "sha256:" + sha256_of(path))) == weights_digest(network)


def test_wrong_weights_are_refused(network: MedicalNet, tmp_path: Path) -> None:
    state = {key: value for key, value in network.state_dict().items() if key != "conv1.weight"}
    save_file({**state, "fc.weight": torch.zeros(2)}, path := tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="another or damaged file"):
        load_medicalnet(path, "0" * 64)
    with pytest.raises(ValueError, match=r"missing \['conv1.weight'\], extra \['fc.weight'\]"):
        load_medicalnet(path, sha256_of(path))
    with pytest.raises(FileNotFoundError):
        load_medicalnet(tmp_path / "none.pth", "0" * 64)
