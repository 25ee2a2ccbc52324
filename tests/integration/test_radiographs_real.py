"""Radiographs of a real scan, written as DICOM of 12 bits: what is read is what was simulated, and the scan explains it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import operator_from_dict
from storage.sources.one_scan import find_scan
from tasks.model.view import ViewConfig
from tasks.reconstruct.placing import place
from tasks.reconstruct.radiographs import RadiographFiles
from tasks.reconstruct.setting import Setting
from tests.unit.storage.radiograph_files import write_radiograph

pytestmark = pytest.mark.slow


def test_two_films_of_a_real_scan(real_ct: Path, tmp_path: Path) -> None:
    fine = Grid3((64, 64, 64), (4.0, 4.0, 4.0))
    blur = operator_from_dict({"name": "blur", "fwhm_mm": 4.0}, fine)
    scan = place(find_scan(real_ct / "nifti_2mm" / "LIDC-IDRI-0002.nii.gz").read(), blur)
    volume = torch.from_numpy(np.clip(scan.values, -1000, 1000))[None, None]
    film = {"name": "projection", "source_to_isocentre_mm": 1600.0, "source_to_detector_mm": 1800.0}
    detector = {"detector_shape": [320, 320], "detector_pitch_mm": 1.0}
    views = [{"angle_deg": 0.0}, {"angle_deg": 90.0}]
    water = operator_from_dict(film | detector | {"views": views}, fine).forward(volume)[0].numpy()
    # 4000 counts in air; 12 bits; a lateral film of 300 mm of water and more still has 10 of them
    pixels = 4000 * np.exp(-0.02 * water)
    spacing = {"ImagerPixelSpacing": [1.0, 1.0], "BitsStored": 12, "HighBit": 11}
    write_radiograph(tmp_path / "1.dcm", pixels[0], **spacing)
    write_radiograph(tmp_path / "2.dcm", pixels[1], ViewPosition="LL", PatientOrientation=["P", "F"], **spacing)
    own = {"radiograph": {"air_value": 4000, "water_per_mm": 0.02}}
    setting = Setting(ViewConfig(size=32, edge=128), 2.0, HounsfieldWindow())  # 32 voxels of 8 mm
    found = RadiographFiles.of(tmp_path, film | own, setting)
    operator = operator_from_dict(found.operator, setting.grid)
    assert operator.measurement_shape() == (2, 35, 35)  # blocks of 9 pixels: 8 mm · 1800 / 1600
    there = operator.measured_pixels.numpy()  # type: ignore[attr-defined]
    blocks = water[:, :315, :315].reshape(2, 35, 9, 35, 9).mean(axis=(2, 4))
    # half a count of n is 0.5 / n / 0.02 mm, and 81 pixels are averaged
    step = 0.5 / (4000 * np.exp(-0.02 * blocks)) / 0.02
    assert (np.abs(found.values - blocks)[there] < np.maximum(step[there], 0.02)).all()
    coarse = volume.reshape(1, 1, 32, 2, 32, 2, 32, 2).mean(dim=(3, 5, 7))
    left = operator.forward(coarse)[0].numpy() - found.values
    assert np.sqrt(np.mean(left[there] ** 2)) < 8.0  # mm, of up to 300: voxels of 8 mm instead of 4
    mirrored = operator.forward(coarse.flip(-1))[0].numpy() - found.values
    assert np.sqrt(np.mean(mirrored[0][there[0]] ** 2)) > 2 * np.sqrt(np.mean(left[0][there[0]] ** 2))
