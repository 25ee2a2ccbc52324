"""What the PRDiT paper reports: figures of its own features, scans and training, to be read beside a benchmark, not in it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's tables.

    Attributes:
        data: `LIDC-IDRI` or `RAD-ChestCT`.
        size: edge of the volumes in voxels.
        model: its name there.
        fid, mmd: in MedicalNet features, 1000 volumes, mean of three seeds; FID not multiplied by 10³; None: out of memory.
        gpu_hours: of training on an A100, where the paper has them.
    """

    data: str
    size: int
    model: str
    fid: float | None
    mmd: float | None
    gpu_hours: float | None = None


LIDC, RAD = "LIDC-IDRI", "RAD-ChestCT"
SOURCE = (
    "Figures of the PRDiT paper (ICLR 2026), its own measurements: MedicalNet features, 1000 volumes, mean of three seeds. "
    "Features, scans, preparation and settings of the rivals are not those of this table, so they compare with each other alone."
)
PAPER = (
    PaperRow(LIDC, 128, "HA-GAN", 3.26e-3, 0.2071),
    PaperRow(LIDC, 128, "3D-LDM", 7.62e-3, 0.3458),
    PaperRow(LIDC, 128, "WDM-3D", 3.67e-3, 0.1885),
    PaperRow(LIDC, 128, "PRDiT-4L", 2.04e-3, 0.1852, 80),
    PaperRow(LIDC, 128, "PRDiT-12L", 1.41e-3, 0.1501),
    PaperRow(LIDC, 128, "PRDiT-4L, 64 to 128", 2.89e-3, None, 12),
    PaperRow(LIDC, 128, "PRDiT-4L, no overlap", 3.27e-3, 0.2304),
    PaperRow(LIDC, 128, "PRDiT-4L, no local denoiser", 3.10e-3, 0.2174),
    PaperRow(LIDC, 128, "PRDiT-4L, no global DiT", 41.92e-3, 0.7795),
    PaperRow(LIDC, 256, "HA-GAN", 3.98e-3, 0.2237, 140),
    PaperRow(LIDC, 256, "3D-LDM", None, None),
    PaperRow(LIDC, 256, "WDM-3D", 5.60e-3, 0.2590, 120),
    PaperRow(LIDC, 256, "PRDiT-4L, up to 256", 2.28e-3, 0.1370, 36),
    PaperRow(RAD, 128, "HA-GAN", 3.92e-3, 0.183),
    PaperRow(RAD, 128, "3D-LDM", 4.14e-3, 0.228),
    PaperRow(RAD, 128, "WDM-3D", 4.11e-3, 0.213),
    PaperRow(RAD, 128, "PRDiT-4L", 1.92e-3, 0.169),
    PaperRow(RAD, 128, "PRDiT-12L", 1.45e-3, 0.159),
)


def paper_row(data: str, size: int, model: str) -> PaperRow:
    """The row of a model. Raises: KeyError: the paper has none."""
    found = {(row.data, row.size, row.model): row for row in PAPER}
    return found[data, size, model]
