"""The Wasserstein distance of a reference run, to which a score is relative."""

from dataclasses import asdict

from prdit_models.metrics.wasserstein import NAME, WassersteinSettings
from storage.artifacts import Ref, load_provenance
from storage.documents.report import Report
from storage.errors import InputError
from tasks.model.checkpoint import CheckpointInfo


def reference_distance(
    report: Ref, info: CheckpointInfo, snapshot: Ref, settings: WassersteinSettings, num_volumes: int
) -> float:
    """`wasserstein` of the reference run's report, where it means the same as that of the run to be measured.

    Args:
        report: of the reference run.
        info: checkpoint of the run to be measured.
        snapshot: real volumes that it will be measured against.
        settings: of its critics.
        num_volumes: that it will draw.
    Raises: InputError: no report, one without the figure, or one that differs in real volumes, number of samples, view, window or
        critics; all are named.
    """
    if report.kind != "report":
        raise InputError(f"The reference run is given by its report, not by a {report.kind} ({report.uri}).")
    found = Report.load(report.path)
    figure = found.figures.get(NAME)
    if figure is None or figure.value is None or not figure.value > 0:
        shown = "none" if figure is None else figure.value
        raise InputError(
            f"The report at {report.uri} has no positive Wasserstein distance (it has {shown}), so nothing can be relative to it. "
            "Evaluate the reference run with evaluate.metrics.wasserstein."
        )
    theirs = {
        "real volumes (snapshot)": load_provenance(report).inputs["snapshot"].digest,
        "volume size": found.volume_size,
        "voxel distance in mm": round(found.voxel_mm, 6),
        "Hounsfield window": found.intensity.model_dump(mode="json"),
        "generated volumes": figure.n_generated,
        "critics": found.details[NAME]["settings"],
    }
    ours = {
        "real volumes (snapshot)": snapshot.digest,
        "volume size": info.view.size,
        "voxel distance in mm": round(info.voxel_mm, 6),
        "Hounsfield window": asdict(info.window),
        "generated volumes": num_volumes,
        "critics": settings.comparable(),
    }
    if differing := [f"{name}: {theirs[name]} there, {ours[name]} here" for name in ours if ours[name] != theirs[name]]:
        raise InputError(
            f"The report at {report.uri} cannot be the reference, because its Wasserstein distance means something else:\n  "
            + "\n  ".join(differing)
        )
    return figure.value
