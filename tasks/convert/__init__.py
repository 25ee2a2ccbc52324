"""Import and export of checkpoints of the published code."""
