"""Named policies of retraining, YAML files."""
