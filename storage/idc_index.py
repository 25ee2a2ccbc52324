"""The index of the NCI Imaging Data Commons (IDC): which public DICOM series there are, of what size and licence, and where.

The index is a table that the package `idc-index-data` brings, one row per series; it is asked with DuckDB where it lies on disk, so
nothing is loaded but what is selected (`idc_index.IDCClient` loads all million rows) and no network is needed.
"""

import difflib
import re
from html import unescape
from importlib import import_module
from pathlib import Path
from typing import Any

from storage.documents.fetch_plan import PlannedSeries, Selection
from storage.errors import InputError, as_input_error

_COLUMNS = (
    "collection_id",
    "analysis_result_id",
    "PatientID",
    "SeriesInstanceUID",
    "Modality",
    "instanceCount",
    "series_size_MB",
    "license_short_name",
    "source_DOI",
    "aws_bucket",
    "crdc_series_uuid",
)
# `series_size_MB` is the sum of the images' bytes over 10^6. The line breaks keep a comment in the condition
# from hiding what follows.
_SELECT = """
SELECT PatientID, SeriesInstanceUID, aws_bucket, crdc_series_uuid, instanceCount, CAST(round(series_size_MB * 1e6) AS BIGINT),
       coalesce(license_short_name, ''), coalesce(source_DOI, '')
FROM read_parquet($index)
WHERE collection_id = $collection AND analysis_result_id IS NULL AND Modality = $modality AND instanceCount >= $min_slices
  AND PatientID IS NOT NULL AND (
{where}
)
ORDER BY PatientID, SeriesInstanceUID
"""


class IdcIndex:
    """The index, opened.

    Args:
        path: a Parquet file with its columns; default: the installed package's.

    Attributes:
        name: name and version, for records.

    Raises: InputError: the packages of the extra `idc` are not installed, or the file is no such index.
    """

    def __init__(self, path: Path | None = None) -> None:
        data = _module("idc_index_data")
        self._duckdb = _module("duckdb")
        self._database = self._duckdb.connect()
        self._path = Path(path or data.IDC_INDEX_PARQUET_FILEPATH)
        self._collections = data.INDEX_METADATA["collections_index"]["parquet_filepath"]
        self.name = f"idc-index-data {data.__version__}" if path is None else path.name
        self._check()

    def _check(self) -> None:
        try:
            described = self._all("DESCRIBE SELECT * FROM read_parquet($index)", index=str(self._path))
        except self._duckdb.Error as error:
            raise InputError(
                f"{self._path} is no index of IDC: it cannot be read as Parquet ({_first(error)})."
            ) from error
        self.columns = tuple(str(row[0]) for row in described)
        if missing := [name for name in _COLUMNS if name not in self.columns]:
            raise InputError(
                f"{self._path} is no index of IDC that this prdit reads: it lacks the column(s) {', '.join(missing)}. Install a "
                "version of idc-index-data within prdit's bounds: pip install 'prdit[idc]'."
            )

    def select(self, selection: Selection) -> list[PlannedSeries]:
        """The series of a selection, sorted by PatientID and UID; original data only, no results of analyses.

        Raises: InputError: there is no such collection, the condition is no SQL on the columns, or nothing matches.
        """
        rows = self._rows(selection)
        if not rows:
            self._explain_nothing(selection)
        names = ("patient_id", "series_uid", "bucket", "prefix", "num_images", "num_bytes", "licence", "doi")
        with as_input_error(f"{self.name} lists a series that cannot be fetched: "):
            found = [PlannedSeries(**dict(zip(names, row, strict=True))) for row in rows]
        return _limited(found, selection)

    def _rows(self, selection: Selection) -> list[tuple[Any, ...]]:
        query = _SELECT.format(where=selection.where or "true")
        asked = selection.model_dump(include={"collection", "modality", "min_slices"})
        try:
            return self._all(query, index=str(self._path), **asked)
        except self._duckdb.Error as error:
            raise InputError(
                f"--where {selection.where!r} is no condition on the index ({_first(error)}); expected SQL on its columns, such as "
                f"\"Manufacturer = 'SIEMENS'\". They are {', '.join(self.columns)}."
            ) from error

    def _explain_nothing(self, selection: Selection) -> None:
        collections = self.collections()
        if selection.collection not in collections:
            near = difflib.get_close_matches(_plain(selection.collection), collections, n=3, cutoff=0.4)
            near += [name for name in collections if _plain(selection.collection) in name and name not in near][:3]
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise InputError(
                f"IDC has no collection {selection.collection!r} ({self.name} lists {len(collections)}{hint}). "
                "https://portal.imaging.datacommons.cancer.gov/collections describes them."
            )
        bare = selection.model_copy(update={"where": "", "min_slices": 1})
        raise InputError(
            f"No series of {selection.collection} match: {len(self._rows(bare))} have modality {selection.modality}; expected at "
            f"least one with --min-slices {selection.min_slices}"
            + (f" and --where {selection.where!r}" if selection.where else "")
            + "."
        )

    def collections(self) -> list[str]:
        """Ids of all collections, sorted."""
        rows = self._all("SELECT DISTINCT collection_id FROM read_parquet($index) ORDER BY 1", index=str(self._path))
        return [str(row[0]) for row in rows if row[0] is not None]

    def citations(self, dois: set[str]) -> dict[str, str]:
        """How data sets want to be cited, by DOI; what the package does not know is left out."""
        if self._collections is None:
            return {}
        query = "SELECT s.source_doi, s.citation FROM (SELECT unnest(sources) AS s FROM read_parquet($index))"
        rows = self._all(query, index=str(self._collections))
        return {doi: _text(citation) for doi, citation in rows if doi in dois and citation}

    def _all(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        return list(self._database.execute(query, values).fetchall())


def _limited(series: list[PlannedSeries], selection: Selection) -> list[PlannedSeries]:
    """Whole patients from the first on, as many as `patients` and `max_gb` allow."""
    sizes: dict[str, int] = {}
    for each in series:
        sizes[each.patient_id] = sizes.get(each.patient_id, 0) + each.num_bytes
    patients = list(sizes)[: selection.patients]
    if selection.max_gb is not None:
        total, fitting = 0, []
        for patient in patients:
            total += sizes[patient]
            if total > selection.max_gb * 1e9:
                break
            fitting.append(patient)
        if not fitting:
            raise InputError(
                f"The first patient's series are {sizes[patients[0]] / 1e9:.3f} GB, more than --max-gb {selection.max_gb:g} allows."
            )
        patients = fitting
    kept = set(patients)
    return [each for each in series if each.patient_id in kept]


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"Fetching from IDC needs the package {name.replace('_', '-')}, which cannot be imported ({error}): "
            "pip install 'prdit[idc]'."
        ) from error


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _plain(name: str) -> str:
    """A collection's id has small letters and underscores: `LIDC-IDRI` is lidc_idri."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def _text(citation: str) -> str:
    """A citation without its HTML, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", citation)).split())
