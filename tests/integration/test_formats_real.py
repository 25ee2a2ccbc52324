"""NRRD, MetaImage and npz of real CT: what SimpleITK reads, and the same scan in every format."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from storage.errors import UnusableSeriesError
from storage.geometry import FILL_HU
from storage.sources.plausible import check_plausible
from storage.sources.source import Limits
from tests.unit.storage.sources.single_files import load, refused


@pytest.fixture(scope="module")
def nrrd(real_ct: Path) -> Path:
    return real_ct / "robustness" / "lowres_chest_CIP"


@pytest.mark.parametrize("name", ["ct-64.nrrd", "TestInput.nrrd"])
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nhdr"])
def test_real_chests_as_simpleitk_reads_them(nrrd: Path, tmp_path: Path, name: str, ending: str) -> None:
    image = sitk.ReadImage(str(nrrd / name))
    values = sitk.GetArrayFromImage(image)
    path = (tmp_path / name).with_suffix(ending)
    sitk.WriteImage(image, str(path), True)
    for scan in (load(nrrd, name), load(tmp_path, path.name)):
        np.testing.assert_array_equal(scan.hu, np.where(values < -1024, FILL_HU, values))
        assert scan.spacing_mm == pytest.approx(image.GetSpacing())
        assert scan.origin_mm == pytest.approx(image.GetOrigin())
        np.testing.assert_allclose(scan.direction.ravel(), image.GetDirection(), atol=1e-9)
        check_plausible(scan, Limits(min_length_mm=150, min_width_mm=200), "Scan x")


def test_a_mask_of_lungs_is_no_ct(nrrd: Path) -> None:
    scan = load(nrrd, "lm-64.nrrd")
    with pytest.raises(UnusableSeriesError, match="values from 0 to 782"):
        check_plausible(scan, Limits(), "Scan x")


def test_a_real_chest_as_rad_chestct_would_store_it(nrrd: Path, tmp_path: Path) -> None:
    image = sitk.ReadImage(str(nrrd / "ct-64.nrrd"))
    values = sitk.GetArrayFromImage(image)  # slices from inferior to superior
    np.savez_compressed(tmp_path / "trn00001.npz", ct=np.asfortranarray(values[::-1]))
    scan = load(tmp_path, "trn00001.npz", spacing_mm=image.GetSpacing())
    np.testing.assert_array_equal(scan.hu, values[::-1])
    assert scan.direction[2, 2] == -1
    np.savez_compressed(tmp_path / "mask.npz", ct=(values > 0).astype(np.int16))
    with pytest.raises(UnusableSeriesError, match="values from 0 to 1"):
        check_plausible(load(tmp_path, "mask.npz"), Limits(), "Scan x")


def test_the_real_chest_by_the_limits_of_a_whole_scan(nrrd: Path) -> None:
    assert refused(nrrd, "ct-64.nrrd", min_slices=100).reason == "too_few_slices"
