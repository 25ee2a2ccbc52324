"""Stage evaluate: samples and store -> metrics and report."""
