"""Stages measure and reconstruct: a measurement of a volume -> volumes that a model holds possible behind it."""
