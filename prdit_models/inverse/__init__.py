"""Inverse problems: what a measurement shows of a volume, as operators with exact adjoints."""
