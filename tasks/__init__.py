"""One folder a stage: its thin Prefect task, its configuration and its work."""
