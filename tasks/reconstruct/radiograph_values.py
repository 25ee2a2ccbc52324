"""Pixel values of radiographs -> mm of water along each ray, on one detector of the operator's."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError
from storage.sources.radiograph_header import RadiographHeader, orientation_of
from storage.sources.radiographs import Radiograph

# Attenuation of water, per mm, at photon energies in keV (NIST XCOM, 1 g/cm³).
_WATER_KEV = (20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
_WATER_PER_MM = (0.0810, 0.0376, 0.0268, 0.0227, 0.0206, 0.0184, 0.0171, 0.0151)
_EFFECTIVE = 0.55  # of the peak voltage: the mean energy of a chest's beam, to about 15 %
_AIR_PERCENTILE = 99.5
_WHOLE = 0.999  # of a block's area that has to be measured
Values = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RadiographSettings:
    """What headers of radiographs do not say: key `radiograph` of an operator `projection`.

    Attributes:
        pixel_values: `intensity`, where they are linear in the X-rays that reached the detector, or `log`, in their logarithm,
            whatever the header says; None: as it says.
        air_value: pixel value (after the modality LUT) where nothing attenuated; None: estimated from the brightest pixels.
        log_per_value: of `log`: by how much the natural logarithm of the intensity changes from one value to the next.
        water_per_mm: attenuation of water at the beam's energy; None: estimated from the header's KVP.
        patient_orientation: where a header has none: sides of the patient towards which columns and rows grow, such as L\\F.
        bin: pixels per edge of the blocks that are averaged; None: as many as are no larger than the shadow of a voxel.
        frames: numbers from 1 of the frames that are used, of files that have several; empty: all.

    Raises: ValueError: at construction, for a value that makes no sense.
    """

    pixel_values: Literal["intensity", "log"] | None = None
    air_value: float | None = None
    log_per_value: float | None = None
    water_per_mm: float | None = None
    patient_orientation: str | None = None
    bin: int | None = None
    frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("log_per_value", "water_per_mm", "bin"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; expected a positive number.")
        if self.patient_orientation is not None and self.orientation is None:
            raise ValueError(
                f"patient_orientation is {self.patient_orientation!r}; expected two letters of L, R, A, P, H, F, such as L\\F."
            )
        if any(frame < 1 for frame in self.frames):
            raise ValueError(f"frames is {list(self.frames)}; frames are counted from 1.")

    @property
    def orientation(self) -> tuple[str, str] | None:
        """As of `RadiographHeader`."""
        return orientation_of(tuple((self.patient_orientation or "").split("\\")))


def water_mm(
    image: Radiograph, values: Values, valid: Mask, settings: RadiographSettings
) -> tuple[Values, Mask, list[str]]:
    """Water-equivalent path lengths: -ln(I/I₀) divided by the attenuation of water.

    Args:
        image: whose values.
        values: after the modality LUT, (rows, columns).
        valid: which of them were exposed.
        settings: what the header does not say.
    Returns: mm of water, 0 where there are none; which pixels have a value; notes.
    Raises: InputError: what pixel values are, or the beam's energy, is not known; or no pixel was exposed.
    """
    header, notes = image.header, []
    relation = settings.pixel_values or header.relation
    if relation is None:
        raise InputError(
            f"{image.place} {header.unrelated}. Give the image for processing, or mm of water as .npy; or say what its pixel "
            "values are: pixel_values: intensity or log, under radiograph in the operator."
        )
    if relation == "log" and settings.log_per_value is None:
        raise InputError(
            f"{image.place} has logarithmic pixel values, whose scale no attribute has. Give log_per_value under radiograph in the "
            "operator: by how much ln(intensity) changes from one value to the next."
        )
    per_mm, note = _water_per_mm(image, settings)
    notes += note
    if relation == "intensity":
        intensity = values if header.sign > 0 else header.highest - values
        valid = valid & (intensity > 0)
        brightness = np.log(np.where(valid, intensity, 1.0))
    else:
        brightness = header.sign * float(settings.log_per_value or 0.0) * values
    if not valid.any():
        raise InputError(f"{image.place} has no exposed pixel: collimator, shutter and padding hide all. Leave it out.")
    if settings.air_value is None:
        air = float(np.percentile(brightness[valid], _AIR_PERCENTILE))
        notes.append(
            f"the brightest {100 - _AIR_PERCENTILE:g} % of each radiograph count as air (radiograph.air_value says what is)"
        )
    else:
        air = _brightness(settings.air_value, relation, header, settings, image)
    return np.where(valid, (air - brightness) / per_mm, 0.0).astype(np.float32), valid, notes


def _brightness(
    value: float, relation: str, header: RadiographHeader, settings: RadiographSettings, image: Radiograph
) -> float:
    """ln(intensity) of a pixel value, up to a constant."""
    if relation == "log":
        return header.sign * float(settings.log_per_value or 0.0) * value
    intensity = value if header.sign > 0 else header.highest - value
    if intensity <= 0:
        raise InputError(
            f"air_value {value:g} under radiograph is no X-rays at all in {image.place}, whose larger values are "
            f"{'more' if header.sign > 0 else 'less'}, up to {header.highest:g}. Give the pixel value where nothing attenuates."
        )
    return math.log(intensity)


def _water_per_mm(image: Radiograph, settings: RadiographSettings) -> tuple[float, list[str]]:
    if settings.water_per_mm is not None:
        return settings.water_per_mm, []
    kvp = image.header.kvp
    if kvp is None:
        raise InputError(
            f"{image.place} has no KVP, so the attenuation of water is not known. Give water_per_mm under radiograph in the "
            "operator (0.0193 at 70 keV)."
        )
    found = float(np.exp(np.interp(np.log(_EFFECTIVE * kvp), np.log(_WATER_KEV), np.log(_WATER_PER_MM))))
    return found, [
        f"attenuation of water {found:.4f} per mm, estimated from {kvp:g} kV (radiograph.water_per_mm sets it)"
    ]


def averages(
    values: Values, valid: Mask, start: tuple[int, int], block: tuple[float, float], count: tuple[int, int]
) -> tuple[Values, Mask]:
    """Means over blocks of pixels, and which blocks were measured whole; 0 in others.

    Args:
        values, valid: of the image, (rows, columns).
        start: first row and column.
        block: edges of a block in pixels, need not be whole.
        count: of blocks.
    """
    down, aside = (
        _shares(first, edge, many, size)
        for first, edge, many, size in zip(start, block, count, values.shape, strict=True)
    )
    area = down @ valid.astype(np.float32) @ aside.T
    whole = area > _WHOLE
    sums = down @ np.where(valid, values, np.float32(0)) @ aside.T
    return np.where(whole, sums / np.maximum(area, _WHOLE), 0.0).astype(np.float32), whole


def _shares(start: int, edge: float, count: int, size: int) -> Values:
    """Share of each block that each pixel is, (blocks, pixels)."""
    low = start + edge * np.arange(count)[:, None]
    pixels = np.arange(size)[None, :]
    overlap = np.minimum(low + edge, pixels + 1) - np.maximum(low, pixels)
    return (np.clip(overlap, 0, None) / edge).astype(np.float32)
