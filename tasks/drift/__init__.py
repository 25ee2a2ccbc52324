"""The drift gate: whether new volumes look like those that the store has."""
