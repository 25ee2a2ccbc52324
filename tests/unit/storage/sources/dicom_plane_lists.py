"""Planes of a CT series for tests, without files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.sources.dicom_planes import Plane
from storage.sources.source import Limits, ScanRequest

SUPINE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LIMITS = Limits(min_slices=8, min_length_mm=0.0, min_width_mm=0.0)
Change = Callable[[int, Plane], Plane]


def planes(
    num: int = 24, *, first_mm: float = -30.0, step_mm: float = 2.5, name: str = "a", **changes: Any
) -> list[Plane]:
    """Planes along z from `first_mm` upwards, `step_mm` apart, 20 × 30 pixels of 1.5 × 2 mm."""
    plain = Plane(
        file="",
        patient_id="P",
        study_uid="1.2",
        frame_of_reference="1.3",
        acquisition="1",
        kernel="B30f",
        shape=(20, 30),
        orientation=SUPINE,
        pixel_mm=(1.5, 2.0),
        slope=1.0,
        intercept=-1024.0,
        rescale_type="HU",
        body_part="CHEST",
    )
    return [
        replace(
            plain,
            file=f"{name}{k:03d}",
            instance_uid=f"{name}.{k}",
            number=k + 1,
            position_mm=(-30.0, -15.0, first_mm + k * step_mm),
            position_unit_mm=(1e-6, 1e-6, 1e-6),
            **changes,
        )
        for k in range(num)
    ]


def changed(series: list[Plane], *places: int, **changes: Any) -> list[Plane]:
    """The series with other values at some places."""
    return [replace(plane, **changes) if k in places else plane for k, plane in enumerate(series)]


def request(limits: Limits = LIMITS, num_expected: int | None = None, num_beside: int = 0) -> ScanRequest:
    """A request for planes that are given."""
    return ScanRequest(Path("nowhere"), (), "1.2.3", limits, num_expected, num_beside=num_beside)
