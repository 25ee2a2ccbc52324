"""Stage split: volume store -> roles by patient."""
