"""Synthetic chest phantoms: the anatomy (`anatomy`, numpy alone) and the DICOM series scanned of it (`series`)."""

MANUFACTURER = "prdit phantom"  # what stands in place of a scanner's
