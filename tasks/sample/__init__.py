"""Stage sample: checkpoint -> sample store in Hounsfield units."""
