"""What a fetch will bring: the plan of a folder, its sizes and licences, and whether it fits on the disk."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.documents.fetch_plan import FetchPlan, PlannedSeries, Selection
from storage.errors import AlreadyExistsError, InputError
from storage.files import entries, is_abandoned, naming_path
from storage.idc_index import IdcIndex
from tasks.maintain.disk import free_bytes

DATA = "dicom"  # the folder with the images: what an ingest reads
_SPARE = 50_000_000  # bytes that are left free


def make_plan(index: IdcIndex, selection: Selection) -> FetchPlan:
    """The plan of a selection. Raises: InputError: nothing matches, or the selection cannot be used."""
    series = tuple(index.select(selection))
    citations = index.citations({each.doi for each in series})
    return FetchPlan(index=index.name, selection=selection, series=series, citations=dict(sorted(citations.items())))


def plan_for(folder: Path, new: FetchPlan) -> FetchPlan:
    """The plan that a folder goes on with.

    That is the folder's own where the same was asked for, though the index may have changed since; the new one where the folder is
    empty, or the new one has all that the folder's has.

    Raises:
        AlreadyExistsError: the folder has a plan with other series, or holds something else.
        DamagedArtifactError, VersionError: its plan cannot be read.
    """
    path = folder / FetchPlan.NAME
    if not path.exists():
        with naming_path(folder):
            strange = [item.name for item in folder.iterdir() if not is_abandoned(item)] if folder.exists() else []
        if strange:
            raise AlreadyExistsError(
                f"{folder} has no {FetchPlan.NAME} and is not empty ({len(strange)} entries); expected an empty folder or that of "
                "an earlier fetch. Choose another one with --to."
            )
        return new
    old = FetchPlan.load(folder)
    if old.selection == new.selection:
        return old
    if lacking := set(old.series) - set(new.series):
        raise AlreadyExistsError(
            f"{folder} holds another plan: {len(lacking)} of its {len(old.series)} series ({_asked(old.selection)}) are not in "
            f"this one ({_asked(new.selection)}). Choose another folder with --to, or ask for what it has and more."
        )
    return new


def _asked(selection: Selection) -> str:
    values = selection.model_dump(exclude_defaults=True) | {"collection": selection.collection}
    return ", ".join(f"{key} {value}" for key, value in values.items())


def series_folder(folder: Path, series: PlannedSeries) -> Path:
    """Where the images of a series go; characters of the PatientID that a path may not have become `_`."""
    patient = re.sub(r"[^A-Za-z0-9._-]", "_", series.patient_id)
    return folder / DATA / (f"_{patient}" if patient.startswith(".") or not patient else patient) / series.series_uid


def bytes_there(folder: Path, plan: FetchPlan) -> int:
    """How much of a plan is in a folder, by the sizes of whole files; their content is checked when it is fetched again."""
    total = 0
    for each in plan.series:
        sizes = [file.stat().st_size for file in entries(series_folder(folder, each), "*.dcm")]
        total += min(sum(sizes), each.num_bytes)
    return total


def check_space(folder: Path, plan: FetchPlan) -> None:
    """Raises: InputError: what is missing of a plan does not fit on the disk."""
    needed, free = plan.num_bytes - bytes_there(folder, plan), free_bytes(folder)
    if needed + _SPARE > free:
        raise InputError(
            f"{needed / 1e9:.2f} GB are still to be fetched, and {free / 1e9:.2f} GB are free at {folder}. Free some space, choose "
            "another folder with --to, or ask for less with --patients or --max-gb."
        )


@dataclass(frozen=True)
class LicenceShare:
    """The series of a plan under one licence and from one data set."""

    licence: str
    doi: str
    num_series: int

    @property
    def forbids_commercial_use(self) -> bool:
        """Whether it is one of Creative Commons' NonCommercial licences."""
        return "NC" in re.split(r"[\s-]+", self.licence.upper())


def licences(series: Sequence[PlannedSeries]) -> list[LicenceShare]:
    """Licences and data sets of series, sorted."""
    counts: dict[tuple[str, str], int] = {}
    for each in series:
        counts[each.licence, each.doi] = counts.get((each.licence, each.doi), 0) + 1
    return [LicenceShare(licence, doi, count) for (licence, doi), count in sorted(counts.items())]
