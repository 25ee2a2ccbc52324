"""Comparison of runs: their reports side by side, differences of figures, what differs in configuration."""
