"""How a stage runs: key, lock, cache, progress, fan-out over Dask, its MLflow run, its Prefect task."""
