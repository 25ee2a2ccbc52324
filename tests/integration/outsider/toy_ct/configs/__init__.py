"""Configurations of the toy."""
