"""Whether the figures of several reports can be compared."""

from collections.abc import Mapping
from typing import Any

from storage.documents.report import Report
from storage.errors import InputError

# what must be equal, in words, and what makes it so
_WORDS = {
    "features": ("features (digest of the network and of how volumes are put in)", "evaluate.extractor"),
    "input_size": ("input size of the feature network", "evaluate.extractor"),
    "volume_size": ("edge of the volumes in voxels", "the view of the trainings"),
    "voxel_mm": ("voxel distance in mm", "the view of the trainings and the grid of the store"),
    "intensity": ("Hounsfield window", "the intensity of the trainings"),
}


def comparability(report: Report) -> dict[str, Any]:
    """What must be equal for the figures of two reports to be compared, as JSON values.

    Returns: `features` (digest), `input_size` ([D, H, W] or None), `volume_size`, `voxel_mm`, `intensity`.
    """
    size = report.features.input_size
    return {
        "features": report.features.digest,
        "input_size": None if size is None else list(size),
        "volume_size": report.volume_size,
        "voxel_mm": round(report.voxel_mm, 6),
        "intensity": report.intensity.model_dump(mode="json"),
    }


def check_comparable(reports: Mapping[str, Report]) -> None:
    """Refuse to compare figures that do not mean the same.

    Args:
        reports: by the name that a person knows each by.
    Raises: InputError: two differ in features, size, voxels or window; every difference is named.
    """
    if not reports:
        return
    (first, report), *others = reports.items()
    expected, titles = comparability(report), {name: each.features.title for name, each in reports.items()}
    lines = []
    for name, other in others:
        for key, value in comparability(other).items():
            if value == expected[key]:
                continue
            words, remedy = _WORDS[key]
            of_first, of_other = str(expected[key]), str(value)
            if key == "features":
                of_first, of_other = f"{titles[first]}, {of_first[:19]}…", f"{titles[name]}, {of_other[:19]}…"
            lines.append(f"{name} has other {words}: {of_other}; {first}: {of_first} ({remedy})")
    if lines:
        raise InputError(
            "These reports cannot be compared, their figures do not mean the same:\n  "
            + "\n  ".join(lines)
            + "\nEvaluate the samples again with equal settings, or compare runs of one kind."
        )
