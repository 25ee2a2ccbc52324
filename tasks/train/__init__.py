"""Stages train-<name>: store, split and the checkpoint it starts from -> checkpoint, in a subprocess."""
