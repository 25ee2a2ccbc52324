"""Patients: what was made of whose volumes, and how a patient is forgotten."""
