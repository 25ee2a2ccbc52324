"""New scans: which series of an inbox are complete, in which batches they are ingested; the DICOM listener that fills it."""
