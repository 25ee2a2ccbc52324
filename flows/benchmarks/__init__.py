"""Benchmarks by name, as YAML: rows that are trained, sampled and measured by one protocol."""
