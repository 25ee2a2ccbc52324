"""Volumes of a store as files that other programs read: one module per format, and a table of them in `formats`."""
