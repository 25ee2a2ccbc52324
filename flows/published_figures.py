"""What the paper reports of its models: a direction for figures measured here, not a target (docs/reproduce.md)."""

from dataclasses import dataclass

from tasks.benchmark.paper import LIDC, RAD, paper_row


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
    ("global", "lidc", 128, 4): paper_row(LIDC, 128, "PRDiT-4L"),
    ("global", "lidc", 128, 12): paper_row(LIDC, 128, "PRDiT-12L"),
    ("global", "rad", 128, 4): paper_row(RAD, 128, "PRDiT-4L"),
    ("global", "rad", 128, 12): paper_row(RAD, 128, "PRDiT-12L"),
    ("refiner", "lidc", 256, 4): paper_row(LIDC, 256, "PRDiT-4L, up to 256"),
}


def published_figures(family: str, dataset: str, volume_size: int, depth: int) -> PublishedFigures | None:
    """The paper's figures of a model, or None where it reports none of such a one."""
    found = _TABLE.get((family, dataset, volume_size, depth))
    if found is None or found.fid is None or found.mmd is None:
        return None
    return PublishedFigures(found.model, found.fid, found.mmd)
