"""Stage ingest: a place with scans -> volume store."""
