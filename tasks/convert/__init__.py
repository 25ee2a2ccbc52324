"""Checkpoints of the published code in and out."""
