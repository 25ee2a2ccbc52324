"""Volumes as files that other programs read, and to DICOM nodes: which of a store, into which folder, to whom."""
