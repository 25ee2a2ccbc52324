"""patients.csv and labels.csv: which rows are about a scan, what they say, and what is refused."""

from pathlib import Path

import pytest

from storage.errors import SourceError
from storage.patient_key import patient_key
from storage.sources.tables import SourceTables

KEY = b"k" * 32
FILES = ("doe/one/001.dcm", "doe/one/002.dcm")


def pid(name: str) -> str:
    return patient_key(KEY, name, "")[0]


def tables(folder: Path, patients: str | bytes | None = None, labels: str | bytes | None = None) -> SourceTables:
    for name, content in (("patients.csv", patients), ("labels.csv", labels)):
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return SourceTables(folder, KEY)


def test_none_at_all(tmp_path: Path) -> None:
    found = tables(tmp_path)
    assert not found
    told = found.assign("1.2", FILES, "")
    assert (told.patient_key, told.patient_known, told.labels) == (patient_key(KEY, "", "1.2")[0], False, {})
    assert found.assign("1.2", FILES, pid("A")).patient_key == pid("A")


@pytest.mark.parametrize(
    "text",
    [
        "series_uid,patient_id\n1.2,P\n",
        "path,patient_id\ndoe/one/002.dcm,P\n",
        "path,patient_id\ndoe,Q\n./doe/one/,P\n",
        "path,patient_id\n.,Q\ndoe,P\n",
        '\ufeffpatient_id,series_uid,remark\r\nP,1.2,"a\nb"\r\n',
        "path,patient_id\ndoe/one/001.dcm,P\ndoe/one,Q\n",
        " Path ,Patient_ID\ndoe,P\n",
        "SERIES_UID,PATIENT_ID\n1.2,P\n",
    ],
)
def test_patients_by_uid_file_or_nearest_folder(tmp_path: Path, text: str) -> None:
    told = tables(tmp_path, text).assign("1.2", FILES, "")
    assert told.patient_key == pid("P")
    assert told.patient_known


def test_row_without_an_id_says_nothing(tmp_path: Path) -> None:
    assert not tables(tmp_path, "series_uid,patient_id\n1.2, \n").assign("1.2", FILES, "").patient_known


def test_the_files_patient_wins_and_the_row_is_named(tmp_path: Path) -> None:
    found = tables(tmp_path, "series_uid,patient_id\n1.1,Doe-1\n1.2,Doe-2\n1.3,Doe-3\n")
    told = {uid: found.assign(uid, FILES, pid(name)) for uid, name in (("1.1", "Doe-1"), ("1.2", "Roe"), ("1.3", "X"))}
    assert told["1.2"].patient_key == pid("Roe")
    (note,) = found.notes(told.items())
    assert "2 scans with another" in note
    assert "line 3 (scan 1.2)" in note
    assert "Doe" not in note
    assert "Roe" not in note


@pytest.mark.parametrize(
    ("name", "given"), [("P", True), ("Anonymous", True), ("UNKNOWN", True), ("0", True), ("Roe", False)]
)
def test_a_row_counts_where_the_files_say_the_same_or_have_no_id(tmp_path: Path, name: str, given: bool) -> None:
    told = tables(tmp_path, "series_uid,patient_id\n1.2,P\n").assign("1.2", FILES, pid(name))
    assert (told.patient_given, told.contradicted) == (given, not given)
    assert told.patient_key == pid("P" if given else name)


def test_rows_that_match_nothing(tmp_path: Path) -> None:
    found = tables(tmp_path, "path,patient_id\ndoe,P\nroe,Q\nmoe,R\n", "series_uid,stage\n1.2,II\n7.7,I\n")
    notes = found.notes([("1.2", found.assign("1.2", FILES, ""))])
    assert notes == [
        "patients.csv: 2 rows without a scan, the first in line 3: check column path.",
        "labels.csv: 1 row without a scan, the first in line 3: check column series_uid.",
    ]


@pytest.mark.parametrize("key", ["series_uid", "path", "patient_id"])
def test_labels_by_uid_path_or_patient(tmp_path: Path, key: str) -> None:
    value = {"series_uid": "1.2", "path": "doe", "patient_id": "P"}[key]
    text = f"{key},stage,smoker,site\n{value},II<script>,,{'x' * 70}\n"
    found = tables(tmp_path, "series_uid,patient_id\n1.2,P\n", text)
    told = found.assign("1.2", FILES, "")
    assert told.labels == {"stage": "IIscript", "site": "x" * 64}
    assert found.assign("1.3", ("other",), pid("Q")).labels == {}
    assert found.notes([("1.2", told)]) == []


def test_columns_of_labels_keep_their_case_but_the_key(tmp_path: Path) -> None:
    assert tables(tmp_path, None, "PATH, Stage \ndoe,II\n").assign("1.2", FILES, "").labels == {"Stage": "II"}


def test_labels_of_a_patient_in_the_files(tmp_path: Path) -> None:
    found = tables(tmp_path, None, "patient_id,stage\nP,II\n")
    assert found.assign("1.2", FILES, pid("P")).labels == {"stage": "II"}
    assert found.assign("1.2", FILES, "").labels == {}


MALFORMED = [
    ("patients.csv", "uid,patient_id\n1.2,P\n", "columns uid, patient_id; expected"),
    (
        "patients.csv",
        "File name,PatientID\na,P\n",
        "columns File name, PatientID; expected patient_id and series_uid (or path)",
    ),
    ("patients.csv", "1.2,SMITH\n1.3,JONES\n", "columns 2 others; expected"),
    ("patients.csv", "path,Path,patient_id\na,b,P\n", "column 1 (path) occurs twice"),
    ("patients.csv", "", "columns none; expected"),
    ("patients.csv", "path;patient_id\na;P\n", "line 1: values are separated by ';'; save the table with commas"),
    ("labels.csv", "path\tnodule\na\tyes\n", "line 1: values are separated by '\\t'"),
    ("patients.csv", "series_uid,patient_id\n1.2,P\n1.2,Q\n", "line 3: the same series_uid as in line 2"),
    ("patients.csv", "path,patient_id\na/,P\n./a,Q\n", "line 3: the same path as in line 2"),
    ("patients.csv", "path,patient_id\na,P\nb\n", "line 3: 1 values, but there are 2 columns"),
    ("patients.csv", "path,patient_id\na,P\nb,Q,R\n", "line 3: 3 values"),
    ("patients.csv", b"path,patient_id\na,P\ncaf\xe9,Q\n", "line 3: not UTF-8"),
    ("patients.csv", 'path,patient_id\n"a,P\n', "not readable as CSV"),
    ("patients.csv", "path,patient_id,path\na,P,b\n", "column 1 (path) occurs twice"),
    ("labels.csv", "series_uid,path,stage\n1.2,a,II\n", "expected exactly one of"),
    ("labels.csv", "stage\nII\n", "expected exactly one of"),
    ("labels.csv", "path\na\n", "a column per label"),
    ("labels.csv", "path,2nd\na,II\n", "column '2nd' is no label name"),
    ("labels.csv", "path,a b\na,II\n", "column 'a b' is no label name"),
    ("labels.csv", f"path,{'x' * 65}\na,II\n", "is no label name"),
    ("labels.csv", "path,KVP\na,II\n", "column 'KVP' is the name of an attribute"),
    ("labels.csv", "path,age_years\na,II\n", "the name of an attribute"),
    ("labels.csv", "path,stage\na,II\na,III\n", "line 3: the same path as in line 2"),
]


@pytest.mark.parametrize(("name", "content", "words"), MALFORMED)
def test_malformed_table_is_one_sentence(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        tables(tmp_path, *((content, None) if name == "patients.csv" else (None, content)))
    text = str(caught.value)
    assert words in text
    assert str(tmp_path / name) in text
    assert "\n" not in text


def test_equal_rows_are_one(tmp_path: Path) -> None:
    told = tables(tmp_path, "series_uid,patient_id\n1.2,P\n\n1.2,P\n").assign("1.2", FILES, "")
    assert told.patient_key == pid("P")
