"""The networks: modules, their shapes, their initial weights."""
