"""Stage ingest: a source of scans -> volume store."""
