"""Scans in a bucket: the same verdicts and volumes as of the same files in a folder."""

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from storage import bucket_path
from storage.errors import SourceError, UnreachableError, UnreadableError
from storage.phantom.series import write_demo_data
from storage.places import as_place
from storage.snapshots import load_snapshot, newest
from storage.sources.files import open_file, walk_source
from storage.sources.formats import read_source_file
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.drills.bucket_ingest import upload
from tests.s3 import BUCKET, Faults, s3_server, use


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def here(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use(monkeypatch, server)
    monkeypatch.setenv("PRDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str, content: bytes) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key=name, Body=content)


def test_a_bucket_gives_what_a_folder_gives(here: Path) -> None:
    write_demo_data(here / "demo", num_patients=2, small=True)
    whole = here / "demo" / "patient-0001"
    shutil.make_archive(str(here / "packed"), "gztar", whole)
    shutil.move(here / "packed.tar.gz", here / "demo" / "packed.tar.gz")
    (here / "demo" / "patients.csv").write_text("path,patient_id\nnothing,someone\n")
    upload(here / "demo", "same")
    settings = IngestConfig(spacing_mm=4.0, patient_key_file=str(here / "key"))
    places = {here / "local": here / "demo", as_place(f"s3://{BUCKET}/store"): as_place(f"s3://{BUCKET}/same")}
    found = [ingest(source, store, settings, runner=Local(1)) for store, source in places.items()]
    assert found[0].counts == found[1].counts
    assert found[0].num_excluded == found[1].num_excluded
    assert found[0].snapshot == found[1].snapshot
    volumes = [load_snapshot(newest(VolumeStore.open(store))).volumes for store in places]
    assert volumes[0] == volumes[1]
    assert len(volumes[0]) >= 2
    again = ingest(as_place(f"s3://{BUCKET}/same"), as_place(f"s3://{BUCKET}/store"), settings, runner=Local(1))
    assert (len(again.committed), len(again.unchanged)) == (0, len(volumes[0]))


def test_objects_are_read_in_parts_and_archives_where_they_lie(here: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner/a.bin", bytes(range(256)) * 20000)
    put("parts/scans.zip", packed.getvalue())
    put("parts/empty", b"")
    put("parts/odd name#%20", b"odd")
    source = as_place(f"s3://{BUCKET}/parts")
    sizes = {each.path: each.size for each in walk_source(source)}  # type: ignore[union-attr]
    assert sizes == {"scans.zip": len(packed.getvalue()), "empty": 0, "odd name#%20": 3}
    with open_file(source, "scans.zip/inner/a.bin") as stream:
        stream.seek(5_000_003)
        assert stream.read(2) == bytes([5_000_003 % 256, 5_000_004 % 256])
    with open_file(source, "empty") as stream:
        assert stream.read() == b""
    with open_file(source, "odd name#%20") as stream:
        assert stream.read() == b"odd"
    with open_file(source, "scans.zip") as stream:
        stream.seek(-10, io.SEEK_END)
        assert stream.read() == packed.getvalue()[-10:]
    with pytest.raises(FileNotFoundError):
        open_file(source, "absent.dcm").__enter__()


def test_marks_of_folders_are_no_files(here: Path) -> None:
    """Consoles and file browsers make an empty object `folder/`."""
    for name in ("marks/", "marks/sub/", "marks/empty/", "marks-none/"):
        put(name, b"")
    put("marks/sub/a.dcm", b"a")
    put("marks/sub", b"an object beside a folder of its name")
    put("marks/none.dcm", b"")
    source = as_place(f"s3://{BUCKET}/marks")
    assert sorted(each.path for each in walk_source(source)) == ["none.dcm", "sub", "sub/a.dcm"]
    assert {str(path) for path in source.iterdir()} == {f"{source}/{name}" for name in ("sub", "empty", "none.dcm")}
    only_mark = as_place(f"s3://{BUCKET}/marks-none")
    assert source.is_dir()
    assert not only_mark.exists()
    with pytest.raises(SourceError, match="has no objects"):
        ingest(only_mark, here / "local", IngestConfig(patient_key_file=str(here / "key")), runner=Local(1))
    assert VolumeStore.create(only_mark).volume_ids() == []


def test_a_name_that_cannot_be_asked_for_is_said(here: Path) -> None:
    put("twice//a.dcm", b"a")
    with pytest.raises(UnreadableError, match=r"s3://scans/twice: an object there.*'//'.*Rename"):
        list(walk_source(as_place(f"s3://{BUCKET}/twice")))


def test_an_object_that_is_refused_says_why(here: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put("denied/a.dcm", b"anything")
    faults = Faults(server)
    faults.rule = lambda method, path, number: "403" if path.endswith("a.dcm") else ""
    use(monkeypatch, faults.address)
    try:
        digest, facts = read_source_file(as_place(f"s3://{BUCKET}/denied"), "a.dcm")
    finally:
        faults.stop()
    assert (digest, facts.reason, facts.detail) == ("", "unreadable_file", "AccessDenied")


def test_an_empty_prefix_and_a_refusal_are_one_sentence(
    here: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = IngestConfig(spacing_mm=4.0, patient_key_file=str(here / "key"))
    with pytest.raises(SourceError, match=r"s3://scans/nothing has no objects"):
        ingest(as_place(f"s3://{BUCKET}/nothing"), here / "local", settings, runner=Local(1))
    faults = Faults(server)
    faults.rule = lambda method, path, number: "403"
    use(monkeypatch, faults.address)
    try:
        with pytest.raises(UnreadableError, match="refuses these credentials"):
            ingest(as_place(f"s3://{BUCKET}/same"), here / "local", settings, runner=Local(1))
    finally:
        faults.stop()


def test_an_object_store_that_goes_away_is_no_fault_of_a_file(
    here: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demo_data(here / "demo", num_patients=1, small=True)
    upload(here / "demo", "away")
    faults = Faults(server)
    use(monkeypatch, faults.address)
    monkeypatch.setattr(bucket_path, "_RETRIES", 1)
    faults.rule = lambda method, path, number: "503" if path.endswith("IM0003.dcm") else ""
    try:
        with pytest.raises(UnreachableError, match=r"cannot be read: SlowDown, after several tries"):
            read_source_file(as_place(f"s3://{BUCKET}/away"), "patient-0001/chest/IM0003.dcm")
    finally:
        faults.stop()


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(here: Path) -> None:
    put("replaced", b"a" * 3_000_000)
    with as_place(f"s3://{BUCKET}/replaced").open("rb") as stream:
        assert stream.read(10) == b"a" * 10
        put("replaced", b"b" * 3_000_000)
        with pytest.raises(OSError, match="replaced while it was read"):
            stream.read()
