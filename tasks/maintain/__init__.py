"""Looking after stores and working directories: what no stage does."""
