"""Feature networks that distances between sets of volumes are measured in."""
