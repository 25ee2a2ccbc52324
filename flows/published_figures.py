"""What the paper reports of its models: a direction for figures measured here, not a target (docs/reproduce.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFigures:
    """One row of the paper's tables.

    Attributes:
        model: its name there.
        fid, mmd: in MedicalNet features, 1000 volumes, mean of three seeds; FID not multiplied by 10³.
    """

    model: str
    fid: float
    mmd: float


# by family, data set, volume size and depth of the transformer. Source: PRDiT (ICLR 2026); SPEC §9
_TABLE = {
    ("global", "lidc", 128, 4): PublishedFigures("PRDiT-4L", 2.04e-3, 0.1852),
    ("global", "lidc", 128, 12): PublishedFigures("PRDiT-12L", 1.41e-3, 0.1501),
    ("global", "rad", 128, 4): PublishedFigures("PRDiT-4L", 1.92e-3, 0.169),
    ("global", "rad", 128, 12): PublishedFigures("PRDiT-12L", 1.45e-3, 0.159),
    ("refiner", "lidc", 256, 4): PublishedFigures("PRDiT-4L, up to 256", 2.28e-3, 0.1370),
}


def published_figures(family: str, dataset: str, volume_size: int, depth: int) -> PublishedFigures | None:
    """The paper's figures of a model, or None where it reports none of such a one."""
    return _TABLE.get((family, dataset, volume_size, depth))
