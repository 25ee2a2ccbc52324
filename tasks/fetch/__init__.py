"""Fetching scans from a public archive into a folder that an ingest reads."""
