"""prdit flows: wiring, configuration and the command line. No arithmetic."""
