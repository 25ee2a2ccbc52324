"""Named pipeline configurations, as YAML."""
