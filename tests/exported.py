"""A store of one scan and a sample store of one volume, small and off the origin, for tests of what is exported; dciodvfy."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.documents.samples import SamplerSettings
from storage.documents.synthetic import Synthetic
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tests.factories import list_volumes

SCAN = "5ca1" * 8
GENERATED = "generated-00000"
PATIENT = "0123456789abcdef" * 2
SHAPE = (24, 30, 36)
SPACING_MM = 6.7
ORIGIN_MM = (-123.456789, 20.1, -1030.333333)
ATTRIBUTES: dict[str, Any] = {
    "Manufacturer": "SIEMENS",
    "ManufacturerModelName": "Sensation 64",
    "ConvolutionKernel": "B40f",
    "BodyPartExamined": "CHEST",
    "PatientPosition": "HFS",
    "PatientSex": "F",
    "KVP": 120.0,
    "XRayTubeCurrent": 200.0,
    "SliceThickness": 1.25,
    "ReconstructionDiameter": 360.0,
    "StudyInstanceUID": "1.2.3.1",
    "SeriesInstanceUID": "1.2.3.2",
    "age_years": 66,
    "contrast": True,
}
MARK = Synthetic(
    checkpoint="sha256:" + "ab" * 32,
    family="global",
    step=100,
    sampler=SamplerSettings(
        name="predictor-corrector",
        schedule="even",
        num_steps=50,
        evaluations=50,
        predictor_step=2,
        parametrization="velocity",
        output="image",
        label=None,
        guidance_scale=1.0,
        process=None,
        seed=42,
        weights="ema",
        precision="fp32",
    ),
)
SEED = 8_646_911_284_551_352_320  # of 63 bits


def thorax() -> Volume:
    """A body with two lungs, different along each axis and each side, with noise that no slice repeats."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = (x**2 + 1.4 * y**2 < 0.8) * 1040.0 - 1000.0
    lungs = ((np.abs(x + 0.05) - 0.4) ** 2 + y**2 + 0.3 * (z - 0.1) ** 2 < 0.07) * -850.0
    noise = np.random.default_rng(3).normal(0.0, 12.0, SHAPE)
    hu = np.clip(body + lungs + noise + 20 * z + 10 * y + 5 * x, -1024, 3000)
    return Volume(np.rint(hu).astype(np.int16), (SPACING_MM,) * 3, ORIGIN_MM)


def scan_store(folder: Path, **attributes: Any) -> VolumeStore:
    """A store of two levels that lists one scan of one patient."""
    store = VolumeStore.create(folder, spacing_mm=SPACING_MM, num_levels=2, interpolation="cubic")
    store.write(thorax(), volume_id=SCAN, attributes=ATTRIBUTES | attributes)
    list_volumes(store, {SCAN: PATIENT})
    return store


def sample_store(folder: Path) -> VolumeStore:
    """A store of one generated volume, as sampling makes it."""
    store = VolumeStore.create(folder, spacing_mm=SPACING_MM, num_levels=1, interpolation="none", synthetic=MARK)
    store.write(thorax(), volume_id=GENERATED, attributes={"index": 0, "seed": SEED})
    return store


def dciodvfy(image: Path) -> list[str]:
    """The errors that dciodvfy (Debian package dicom3tools) finds in an image; skips where it is not installed."""
    if shutil.which("dciodvfy") is None:
        reason = "not on PATH: dciodvfy (Debian package dicom3tools)"
        if os.environ.get("PRDIT_REQUIRE_DICOM3TOOLS") == "1":
            pytest.fail(f"PRDIT_REQUIRE_DICOM3TOOLS=1 but {reason}")
        pytest.skip(reason)
    done = subprocess.run(["dciodvfy", str(image)], capture_output=True, text=True, check=False, timeout=60)
    lines = (done.stdout + done.stderr).splitlines()
    assert "CTImage" in lines, lines  # it knew what it looked at
    return [line for line in lines if line.startswith("Error")]
