"""Volumes of one scan: which are copies of it, and why one of them is not listed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.documents.volume import ScanFacts, VolumeRecord
from storage.geometry import Float3, Int3
from storage.verdicts import counted


class WithPatient(Protocol):
    """A scan or a listed volume: its patient key, and whether that is of a known patient."""

    @property
    def patient_key(self) -> str: ...  # noqa: D102

    @property
    def patient_known(self) -> bool: ...  # noqa: D102


def known_patient(whose: WithPatient | None) -> str:
    """The patient key of a scan or a listed volume; "" where the patient is not known, or there is none."""
    return whose.patient_key if whose is not None and whose.patient_known else ""


def with_facts(volume_ids: Iterable[str], records: Mapping[str, VolumeRecord]) -> Iterator[tuple[str, ScanFacts]]:
    """Volumes that were made of a scan, with what is recorded of it; those whose record is not readable are left out."""
    for volume_id in volume_ids:
        if volume_id in records and (facts := records[volume_id].scan):
            yield volume_id, facts


@dataclass(frozen=True)
class Copy:
    """What tells a copy of a scan from another scan that has its id.

    Attributes:
        volume_id: of the volume that was made of it.
        num_slices: of the scan.
        slice_mm: their distance.
        shape, origin_mm: of the volume at the grid, (z, y, x) and (x, y, z).
        spacing_mm: of the grid.
        patient: patient key, "" where the patient is not known.
    """

    volume_id: str
    num_slices: int
    slice_mm: float
    shape: Int3
    origin_mm: Float3
    spacing_mm: float
    patient: str

    @classmethod
    def of(cls, record: VolumeRecord, whose: "WithPatient | None") -> "Copy | None":
        """A committed volume, and what has its patient; None where it was generated."""
        facts = record.scan
        if facts is None:
            return None
        slice_mm, spacing_mm = facts.spacing_mm[2], record.spacing_mm[0]
        patient = known_patient(whose)
        return cls(record.volume_id, facts.num_slices, slice_mm, record.shape, record.origin_mm, spacing_mm, patient)

    def other_than(self, known: "Copy") -> str:
        """Why this is no copy of the scan of a known volume, its patient or slices that the longer one lacks; "" where it is."""
        if self.patient and known.patient and self.patient != known.patient:
            return f"volume {known.volume_id}, of another patient"
        short, long = sorted((self, known), key=lambda copy: copy.num_slices)
        tolerance = max(self.slice_mm, known.slice_mm) + 2 * self.spacing_mm
        (low, high), (longer_low, longer_high) = short._box(), long._box()
        if (low < longer_low - tolerance).any() or (high > longer_high + tolerance).any():
            return f"volume {known.volume_id}, which has other slices"
        return ""

    def why_not_listed(self, listed: "Copy") -> tuple[str, str]:
        """Reason and detail of the verdict, where the store lists another volume of the scan and not this one."""
        if other := self.other_than(listed):
            return "other_scan", other
        if listed.num_slices > self.num_slices:
            detail = f"{counted(self.num_slices, 'slice')}, volume {listed.volume_id} of it {listed.num_slices}"
            return "shorter_copy", detail
        return "other_copy", listed.volume_id

    def _box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low = np.asarray(self.origin_mm)
        return low, low + (np.asarray(self.shape[::-1]) - 1) * self.spacing_mm
