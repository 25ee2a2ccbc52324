"""The JSON files that one room writes and another reads: each a typed, frozen model with one reader and one writer."""
