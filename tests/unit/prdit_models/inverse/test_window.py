"""Volumes within the window: by hand, against a solver of bounded least squares, and row by row."""

import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from prdit_models.diffusion.steering import rms
from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.guides import Projection
from prdit_models.inverse.model_range import InModelRange
from prdit_models.inverse.window import within_window
from tests.oracles import operators

WINDOW = HounsfieldWindow()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _measured(operator: operators.Operator, shape: tuple[int, ...]) -> InModelRange:
    return InModelRange(operator, WINDOW, torch.zeros(shape, dtype=torch.float64))


def test_a_block_of_air_by_hand() -> None:
    """Four voxels below the window and four above its lower end by as much: their mean is -1 + 0.05."""
    volume = torch.full((1, 1, 2, 2, 2), -1.2, dtype=torch.float64)
    volume[..., 0] = -0.7
    measured = _measured(operators.block_means(0.0), (1, 1, 1, 1, 1))
    found = within_window(measured, volume, measured.forward(volume))
    assert float(measured.forward(found)) == pytest.approx(-950.0, abs=0.01)
    torch.testing.assert_close(found[..., 0], torch.full((1, 1, 2, 2), -0.9, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[..., 1], torch.full((1, 1, 2, 2), -1.0, dtype=torch.float64), atol=0, rtol=0)
    clamped = volume.clamp(-1, 1)
    assert float(measured.forward(clamped)) == pytest.approx(-850.0)  # what a clamp alone makes of it


def test_a_mean_that_no_volume_has_comes_as_near_as_it_can() -> None:
    measured = _measured(operators.block_means(10.0), (1, 1, 1, 1, 1))
    volume = torch.full((1, 1, 2, 2, 2), -1.02, dtype=torch.float64)
    volume[..., 0, 0, 0] = -0.95
    found = within_window(measured, volume, measured.forward(volume))
    assert torch.equal(found, torch.full_like(found, -1.0))


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_rays_keep_their_sums(noise_std: float) -> None:
    """Of volumes of which many voxels lie beyond the window; bounded least squares says how near any volume can come."""
    measured = _measured(operators.ray_sums(noise_std), (1, 2, 1, 4, 4))
    volumes = -0.7 + 0.4 * _random(3, 1, 4, 4, 4)
    wanted = measured.forward(volumes)
    found = within_window(measured, volumes, wanted)
    matrix = measured.linear(torch.eye(64, dtype=torch.float64).view(64, 1, 4, 4, 4)).flatten(1).T.numpy()
    offset = measured.forward(torch.zeros(1, 1, 4, 4, 4, dtype=torch.float64)).flatten().numpy()
    left = rms(wanted - measured.forward(found))
    before = rms(wanted - measured.forward(volumes.clamp(-1, 1)))
    assert float(found.min()) >= -1.0
    assert float(found.max()) <= 1.0
    for row in range(3):
        best = lsq_linear(matrix, wanted[row].flatten().numpy() - offset, (-1.0, 1.0))
        least = (2 * best.cost / len(offset)) ** 0.5
        assert float(left[row]) < max(1.1 * least, 0.1 * noise_std, 0.05 * float(before[row]))


def test_rows_by_themselves_and_volumes_that_need_nothing() -> None:
    measured = _measured(operators.ray_sums(0.0), (1, 2, 1, 4, 4))
    volumes = (-0.9 + 0.3 * _random(3, 1, 4, 4, 4, seed=3)).float()
    volumes[1] = volumes[1].clamp(-1, 1)
    wanted = measured.forward(volumes)
    together = within_window(measured, volumes, wanted)
    assert torch.equal(together[1], volumes[1])
    for row in (0, 2):
        assert torch.equal(within_window(measured, volumes[row : row + 1], wanted[row : row + 1])[0], together[row])


def test_a_guide_ends_within_the_window() -> None:
    """Both ends of a sampler have the measurement of the state: the network's own image had another."""
    measured = _measured(operators.block_means(10.0), (1, 1, 2, 2, 2))
    state, image = -0.8 + 0.3 * _random(1, 1, 4, 4, 4), torch.full((1, 1, 4, 4, 4), -0.5, dtype=torch.float64)
    ended = Projection(measured).ended(state, image)
    for found in ended:
        assert float(found.min()) >= -1.0
        assert float(rms(measured.forward(found) - measured.forward(state))) <= 1.0  # a tenth of the noise
    plain = Projection(measured, within_window=False).ended(state, image)
    assert plain[0] is state
    assert plain[1] is image
