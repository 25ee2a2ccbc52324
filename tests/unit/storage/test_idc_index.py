"""The index of IDC: what is selected, in which order, and what is said where nothing can be."""

from pathlib import Path

import pytest

from storage.documents.fetch_plan import Selection
from storage.errors import InputError
from storage.idc_index import IdcIndex
from tests.fake_idc import COLLECTION, DOI, LICENCE, index_row, write_index


@pytest.fixture
def index(tmp_path: Path) -> IdcIndex:
    rows = [
        index_row("P-0003", "1.2.3", series_size_MB=400.0),
        index_row("P-0001", "1.2.12", series_size_MB=100.25),
        index_row("P-0001", "1.2.11", Manufacturer="GE MEDICAL SYSTEMS", instanceCount=3, series_size_MB=0.000001),
        index_row("P-0002", "1.2.2", license_short_name=None, source_DOI=None),
        index_row("P-0002", "1.2.21", Modality="DX"),
        index_row("P-0002", "1.2.22", analysis_result_id="somebodys_reformats"),
        index_row("Q-0001", "1.2.9", collection_id="phantom_chest_2"),
    ]
    return IdcIndex(write_index(tmp_path / "index.parquet", rows))


def uids(index: IdcIndex, **asked: object) -> list[str]:
    selection = Selection.model_validate({"collection": COLLECTION, **asked})
    return [each.series_uid for each in index.select(selection)]


def test_ct_of_the_collection_is_selected_in_the_order_of_patients(index: IdcIndex) -> None:
    assert uids(index) == ["1.2.11", "1.2.12", "1.2.2", "1.2.3"]  # no DX, no results of analyses, no other collection
    first, second, third, _ = index.select(Selection(collection=COLLECTION))
    assert (first.patient_id, first.num_images, first.num_bytes) == ("P-0001", 3, 1)
    assert (second.num_bytes, second.licence, second.doi) == (100_250_000, LICENCE, DOI)
    assert (third.licence, third.doi) == ("", "")
    assert index.name == "index.parquet"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"patients": 1}, ["1.2.11", "1.2.12"]),
        ({"patients": 2}, ["1.2.11", "1.2.12", "1.2.2"]),
        ({"patients": 99}, ["1.2.11", "1.2.12", "1.2.2", "1.2.3"]),
        ({"min_slices": 4, "patients": 1}, ["1.2.12"]),
        ({"max_gb": 0.2}, ["1.2.11", "1.2.12", "1.2.2"]),
        ({"max_gb": 0.15}, ["1.2.11", "1.2.12"]),  # 150.250001 MB would be more
        ({"max_gb": 0.16, "patients": 1}, ["1.2.11", "1.2.12"]),
        ({"modality": "DX"}, ["1.2.21"]),
        ({"where": "Manufacturer = 'SIEMENS' AND PatientID <> 'P-0003'"}, ["1.2.12", "1.2.2"]),
        ({"where": "Manufacturer = 'SIEMENS' OR true -- all of them"}, ["1.2.11", "1.2.12", "1.2.2", "1.2.3"]),
    ],
)
def test_selection(index: IdcIndex, asked: dict[str, object], expected: list[str]) -> None:
    assert uids(index, **asked) == expected


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"collection": "Phantom-Chest"}, ["no collection 'Phantom-Chest'", "lists 2", "nearest: phantom_chest"]),
        ({"where": "Manufacturer = 'PHILIPS'"}, ["4 have modality CT", "--where \"Manufacturer = 'PHILIPS'\""]),
        ({"min_slices": 101}, ["No series of phantom_chest match", "--min-slices 101"]),
        ({"max_gb": 0.1}, ["The first patient's series are 0.100 GB", "--max-gb 0.1"]),
        ({"where": "nonsense = 1"}, ["--where 'nonsense = 1' is no condition", '"nonsense"', "instanceCount"]),
        ({"where": "true; DROP TABLE t"}, ["is no condition on the index", "expected SQL on its columns"]),
    ],
)
def test_a_selection_of_nothing_is_explained(index: IdcIndex, asked: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        uids(index, **asked)
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert message.isprintable()  # one line


def test_a_series_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    rows = [index_row("P", "1.2.3", crdc_series_uuid="../../other")]
    with pytest.raises(InputError, match="lists a series that cannot be fetched"):
        IdcIndex(write_index(tmp_path / "index.parquet", rows)).select(Selection(collection=COLLECTION))


def test_another_file_is_no_index(tmp_path: Path) -> None:
    path = write_index(tmp_path / "other.parquet", [{"PatientID": "P"}], {"PatientID": "VARCHAR"})
    with pytest.raises(InputError, match=r"lacks the column\(s\) collection_id, .*crdc_series_uuid"):
        IdcIndex(path)
    path.write_text("no parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        IdcIndex(path)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        IdcIndex(tmp_path / "missing.parquet")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "idc_index_data", None)
    with pytest.raises(InputError, match=r"needs the package idc-index-data.*pip install 'prdit\[idc\]'"):
        IdcIndex()


def test_the_installed_index_has_lidc() -> None:
    """Figures of the collection's paper: Armato et al. 2011, 1018 scans of 1010 patients."""
    pytest.importorskip("idc_index_data", reason="the extra idc is not installed")
    index = IdcIndex()
    series = index.select(Selection(collection="lidc_idri"))
    assert (len(series), len({each.patient_id for each in series})) == (1018, 1010)
    assert series[0].patient_id == "LIDC-IDRI-0001"
    assert sum(each.num_bytes for each in series) == pytest.approx(128.4e9, rel=0.001)
    assert {each.licence for each in series} == {"CC BY 3.0"}
    (doi,) = {each.doi for each in series}
    citation = index.citations({doi})[doi]
    assert citation.startswith("Armato III, Samuel G.")
    assert "<i>" not in citation
    assert citation.isprintable()
