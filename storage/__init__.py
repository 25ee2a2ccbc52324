"""Bytes <-> arrays with units: DICOM, NIfTI, volume store, checkpoints, references, tracking."""
