"""Sources of scans: listing, and one module per format. Nothing outside knows which format a scan had."""
