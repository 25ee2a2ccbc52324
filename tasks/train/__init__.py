"""Stages train-local and train-global: store and split -> checkpoint, in a subprocess."""
