"""`fetch.json` of a folder that scans are fetched into: which series of an archive belong there."""

from typing import ClassVar

from pydantic import Field

from storage.documents.document import Document, Part

_UID = r"^[0-9]+(\.[0-9]+)+$"  # the index has a few whose first number DICOM does not allow


class Selection(Part):
    """What was asked for.

    Attributes:
        collection: of the archive, by its id.
        modality: DICOM Modality of the series.
        where: further condition on columns of the index, in SQL; empty: none.
        min_slices: least number of DICOM images of a series.
        patients: at most so many, in the order of their PatientIDs; None: all.
        max_gb: whole patients, in that order, as long as all their series together are no larger (10^9 bytes); None: no limit.
    """

    collection: str
    modality: str = "CT"
    where: str = ""
    min_slices: int = Field(default=1, ge=1)
    patients: int | None = Field(default=None, ge=1)
    max_gb: float | None = Field(default=None, gt=0)


class PlannedSeries(Part):
    """One series as the archive's index lists it.

    Attributes:
        patient_id: PatientID, a public pseudonym of the archive.
        series_uid: SeriesInstanceUID.
        bucket, prefix: on S3: one object per DICOM image lies under s3://bucket/prefix/.
        num_images, num_bytes: of those objects.
        licence: short name; empty where the index has none.
        doi: of the data set that the series was published in; empty where the index has none.
    """

    patient_id: str
    series_uid: str = Field(pattern=_UID, max_length=64)
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    prefix: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")
    num_images: int = Field(ge=1)
    num_bytes: int = Field(ge=0)
    licence: str = ""
    doi: str = ""


class FetchPlan(Document):
    """Which series a folder is for; the same command goes on from it.

    Attributes:
        index: name and version of the index that the series were selected in.
        selection: what was asked for.
        series: sorted by PatientID, then SeriesInstanceUID.
        citations: by DOI, as the index has them.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "fetch.json"
    WHAT: ClassVar[str] = "plan of a fetch"
    REMEDY: ClassVar[str] = "Move it aside and fetch again: images that are there are checked and kept."

    index: str
    selection: Selection
    series: tuple[PlannedSeries, ...] = Field(min_length=1)
    citations: dict[str, str] = Field(default_factory=dict)

    @property
    def num_patients(self) -> int:
        """How many patients the series are of."""
        return len({each.patient_id for each in self.series})

    @property
    def num_images(self) -> int:
        """DICOM images of all series."""
        return sum(each.num_images for each in self.series)

    @property
    def num_bytes(self) -> int:
        """Size of all series."""
        return sum(each.num_bytes for each in self.series)
