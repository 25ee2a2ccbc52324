"""Tombstones of forgotten patients: what an ingest must not bring back.

A tombstone names a patient by the store's patient key (an HMAC; nobody reads a PatientID out of it) and the forgotten volumes by
their ids (hashes of pixels and geometry), so that a scan without a PatientID does not come back either.
"""

from collections.abc import Collection
from pathlib import Path


def add_tombstone(store: Path, patient_key: str, volume_ids: Collection[str]) -> None:
    """Record a patient as forgotten, before anything is deleted. Raises: UnwritableError."""
    raise NotImplementedError


def is_forgotten(store: Path, patient_key: str, volume_id: str) -> bool:
    """Whether a scan belongs to a forgotten patient: by its patient, or by its pixels."""
    raise NotImplementedError
