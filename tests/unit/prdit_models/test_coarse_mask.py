"""Coarse masks: shares of cells by hand, the same from fine and coarse voxels, flips, and a box that cuts the patient."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from prdit_models.coarse_mask import BODY, LUNGS, body_and_lungs, labels_of_mask, mask_of_volume
from prdit_models.metrics.anatomy import outside_air
from tests.phantoms import BOX_MM, phantom_box

CELL_MM = 16


def seen(patient: int, size: int, noise_hu: float = 14.0) -> np.ndarray:
    """A phantom of 2 mm voxels, pooled to `size` as a view is."""
    hu = phantom_box(patient, 128, noise_hu=noise_hu)
    step = 128 // size
    means: np.ndarray = hu.reshape(size, step, size, step, size, step).mean(axis=(1, 3, 5))
    return means


def box_of_tissue(size: int = 32) -> np.ndarray:
    """Air with a block of tissue in it, and a block of air in that; 8 mm voxels."""
    hu = np.full((size,) * 3, -1000.0, np.float32)
    hu[4:28, 4:28, 5:27] = 40.0
    hu[8:24, 10:20, 8:16] = -850.0
    return hu


def test_cells_have_the_share_of_body_and_lungs_in_them() -> None:
    body, lungs = mask_of_volume(box_of_tissue(), 8.0, 4)
    assert body.shape == (8, 8, 8)
    assert body[1:7, 1:7, 2:6].min() == 1.0  # lungs belong to the body
    assert body[2, 2, 1] == pytest.approx(0.75)  # voxels 4 to 7, of which 5 to 7 are body
    assert body[0].max() == body[:, :, 0].max() == 0.0
    assert lungs[2:6, 3:5, 2:4].min() == 1.0
    assert lungs[3, 2, 2] == pytest.approx(0.5)  # rows 8 to 11, of which 10 and 11 are air
    assert float(lungs.sum()) == pytest.approx(16 * 10 * 8 / 4**3)


def test_labels_are_those_of_the_larger_half() -> None:
    mask = mask_of_volume(box_of_tissue(), 8.0, 4)
    labels = labels_of_mask(mask, 4)
    assert labels.shape == (32, 32, 32)
    assert labels.dtype == np.int16
    assert labels[14, 14, 10] == LUNGS
    assert labels[14, 9, 10] == LUNGS  # its cell is half lung
    assert labels[14, 25, 20] == BODY
    assert labels[14, 25, 4] == BODY  # 0.75 of its cell
    assert labels[0].max() == 0
    assert np.array_equal(labels[::4, ::4, ::4] == LUNGS, mask[1].numpy() >= 0.5)


def test_lungs_of_a_phantom_are_where_its_air_is_whatever_the_voxels() -> None:
    masks = {size: mask_of_volume(seen(1, size), BOX_MM / size, CELL_MM * size // BOX_MM) for size in (32, 64, 128)}
    for coarser in (32, 64):
        assert float((masks[coarser] - masks[128]).abs().max()) < 1e-5  # all are found on 8 mm
    truth = seen(1, 64, noise_hu=0.0)
    inside = np.stack([ndimage.binary_fill_holes(plane > -500) & (plane < -500) for plane in truth])
    drawn = labels_of_mask(masks[64], 4) == LUNGS
    assert 2 * (inside & drawn).sum() / (inside.sum() + drawn.sum()) > 0.85
    body, lungs = masks[64]
    assert 0.07 < float(lungs.mean()) < 0.13 < 0.4 < float(body.mean()) < 0.55


def test_a_mirrored_volume_has_the_mirrored_mask() -> None:
    hu = phantom_box(2, 64)
    mask = mask_of_volume(hu, 4.0, 4)
    mirrored = mask_of_volume(np.ascontiguousarray(hu[:, :, ::-1]), 4.0, 4)
    assert torch.equal(mirrored, mask.flip(-1))
    assert not torch.equal(mirrored, mask)


def test_lungs_that_the_box_cuts_stay_lungs() -> None:
    hu = phantom_box(1, 32)
    whole = float(body_and_lungs(hu, 8.0)[1][:, :18].mean())
    assert whole > 0.1
    cut = np.full_like(hu, -1000.0)
    cut[:, -18:] = hu[:, :18]  # the box ends in the middle of the patient
    assert outside_air(cut < -500)[16, -1].any()  # for the anatomy figures its lungs are outside
    _, lungs = body_and_lungs(cut, 8.0)
    assert lungs[:, -18:].mean() == pytest.approx(whole, rel=0.05)
    assert not lungs[:, :-18].any()


def test_air_alone_has_no_mask() -> None:
    assert float(mask_of_volume(np.full((16,) * 3, -1000.0, np.float32), 16.0, 1).abs().max()) == 0.0
