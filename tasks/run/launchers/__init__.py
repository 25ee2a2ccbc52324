"""Start the ranks of a job on one node or many: a launcher starts a node process on each, which runs torchrun."""
