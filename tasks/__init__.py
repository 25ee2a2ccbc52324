"""One folder per stage with its configuration, function and work; `run` and `model` hold what stages share."""
