"""Inverse problems: measurements of volumes, and sampling towards them."""
