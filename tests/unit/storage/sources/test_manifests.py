"""Lists of what a source should hold: counts where they are sure, notes where a list does not fit, never an error."""

from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from storage.sources.manifests import Expected, Manifest, is_manifest, read_manifest


def write_dicomdir(path: Path, series: dict[str, list[str]]) -> None:
    """A DICOMDIR of one patient and study; files by series. Its records are in an order of its own, as its offsets say."""
    records = []
    for uid, files in series.items():
        head = Dataset()
        head.DirectoryRecordType, head.SeriesInstanceUID, head.Modality = "SERIES", uid, "CT"
        images = []
        for name in files:
            image = Dataset()
            image.DirectoryRecordType, image.ReferencedFileID = "IMAGE", name.split("/")
            images.append(image)
        records += [*reversed(images), head]
        head.images, head.order = images, []
    data = Dataset()
    data.FileSetID = ""
    every = list(records)
    for record in every:
        record.OffsetOfTheNextDirectoryRecord = record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
        record.RecordInUseFlag = 0xFFFF
    data.DirectoryRecordSequence = Sequence(every)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    places = [record.seq_item_tell for record in pydicom.dcmread(path).DirectoryRecordSequence]
    where = {id(record): place for record, place in zip(every, places, strict=True)}
    for record in every:
        images = getattr(record, "images", [])
        if images:
            record.OffsetOfReferencedLowerLevelDirectoryEntity = where[id(images[0])]
        for one, following in pairwise(images):
            one.OffsetOfTheNextDirectoryRecord = where[id(following)]
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("Series UID,Collection,Number of Images,Modality", ["1.2.1,X,24,CT", "1.2.2,X,3,SEG"]),
        ("PatientID,SeriesInstanceUID,NumberOfImages", ["A,1.2.1,24", "A,1.2.2,3"]),
        ("SeriesInstanceUID,instance_count", ["1.2.1,24", "1.2.2,3"]),
    ],
)
def test_tables_of_nbia_and_idc(tmp_path: Path, header: str, rows: list[str]) -> None:
    (tmp_path / "metadata.csv").write_text("\n".join([header, *rows]))
    found = read_manifest(tmp_path, "metadata.csv")
    assert found.counts == {"1.2.1": 24, "1.2.2": 3}
    assert found.series == {"1.2.1", "1.2.2"}
    assert found.notes == ()


def test_lists_without_counts(tmp_path: Path) -> None:
    (tmp_path / "x.tcia").write_text(
        "downloadServerUrl=https://x/\nversion=3.0\nListOfSeriesToDownload=\n1.2.1\n1.2.2\n"
    )
    (tmp_path / "x.s5cmd").write_text("cp s3://idc-open-data/0a1b/* .\n")
    assert read_manifest(tmp_path, "x.tcia").series == {"1.2.1", "1.2.2"}
    assert read_manifest(tmp_path, "x.s5cmd").series == frozenset()
    expected = Expected([read_manifest(tmp_path, "x.tcia")])
    assert expected.count("1.2.1") is None
    assert expected.notes({"1.2.2": 1}) == [
        "tcia list: 1 of 2 series that it lists are not CT of this source, the first 1.2.1. Where they are CT, fetch them; else "
        "nothing is to do."
    ]
    assert expected.notes({"1.2.2": 1, "1.2.1": 1}) == []


def test_dicomdir_counts_images_by_its_offsets(tmp_path: Path) -> None:
    (tmp_path / "disc" / "A").mkdir(parents=True)
    (tmp_path / "disc" / "A" / "1").touch()
    write_dicomdir(tmp_path / "disc" / "DICOMDIR", {"1.2.1": ["A/1", "A/2", "A/3"], "1.2.2": ["A/1"]})
    found = read_manifest(tmp_path, "disc/DICOMDIR")
    assert found.counts == {"1.2.1": 3, "1.2.2": 1}
    assert found.notes == ("DICOMDIR: 2 of 4 files that it lists are not there; copy the disc again.",)


def test_counts_that_disagree_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "Series UID,Number of Images\n1.2.1,24\n1.2.1,25\n1.2.2,3\n1.2.3,many\n1.2.4,0\n"
    )
    found = read_manifest(tmp_path, "metadata.csv")
    assert found.counts == {"1.2.2": 3}
    assert found.notes == (
        "metadata.csv: 1 row without a number of images, to be corrected.",
        "metadata.csv: it gives several numbers of images for 1 series, the first 1.2.1; none is used.",
    )
    (tmp_path / "manifest.csv").write_text("SeriesInstanceUID,instanceCount\n1.2.2,4\n")
    both = Expected([found, read_manifest(tmp_path, "manifest.csv")])
    assert both.count("1.2.2") is None
    assert "manifests: it gives several numbers of images for 1 series, the first 1.2.2; none is used." in both.notes(
        {"1.2.2": 3}
    )


def test_a_list_that_names_fewer_images_than_there_are_is_noted() -> None:
    expected = Expected([Manifest("metadata.csv", frozenset({"1.2.1", "1.2.2", "1.2.3"}), {"1.2.1": 40, "1.2.2": 48})])
    (note,) = expected.notes({"1.2.1": 48, "1.2.2": 48, "1.2.3": 9})
    assert note.startswith("manifests: 1 series have more images than listed, the first 1.2.1 (48 of 40): ")


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b'a,"b', b"name,age\nx,y\n", b"\0" * 100])
@pytest.mark.parametrize("name", ["metadata.csv", "x.tcia", "DICOMDIR"])
def test_a_list_that_is_none_is_a_note_at_most(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    found = read_manifest(tmp_path, name)
    assert (found.counts, found.series) == ({}, frozenset())
    assert name == "x.tcia" or len(found.notes) == 1


def test_which_files_are_lists() -> None:
    assert is_manifest("a/metadata.csv", "unknown_format")
    assert is_manifest("manifest-1620.tcia", "unknown_format")
    assert is_manifest("x/IM0001", "dicomdir")
    assert not is_manifest("notes.csv", "unknown_format")
    assert not is_manifest("x.tcia", "not_ct")
