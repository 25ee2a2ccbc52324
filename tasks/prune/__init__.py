"""Removes stage directories that no recent run uses."""
