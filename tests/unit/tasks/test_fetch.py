"""Fetching from an archive: the plan of a folder, checked downloads, what a fault leaves, the attribution."""

import os
import re
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.documents.fetch_plan import FetchPlan, PlannedSeries, Selection
from storage.errors import (
    AlreadyExistsError,
    DamagedArtifactError,
    InputError,
    MissingArtifactError,
    UnreadableError,
)
from storage.idc_bucket import BucketObject
from storage.idc_index import IdcIndex
from tasks.fetch.attribution import attribution
from tasks.fetch.download import Fetched, fetch
from tasks.fetch.plan import DATA, bytes_there, check_space, licences, make_plan, plan_for, series_folder
from tests.fake_idc import BUCKET, COLLECTION, DOI, FakeIdc, fake_idc, no_fault


def series(patient: str = "P1", uid: str = "1.2.3", **changes: object) -> PlannedSeries:
    values = {"bucket": BUCKET, "prefix": "abc", "num_images": 2, "num_bytes": 20, "licence": "CC BY 4.0", "doi": DOI}
    return PlannedSeries.model_validate({"patient_id": patient, "series_uid": uid, **values, **changes})


def plan(*planned: PlannedSeries, **asked: object) -> FetchPlan:
    selection = Selection.model_validate({"collection": COLLECTION, **asked})
    return FetchPlan(index="index 1", selection=selection, series=planned)


# ---- the plan of a folder ----------------------------------------------------------------------------------------------


def test_a_folder_goes_on_with_its_plan_where_the_same_is_asked_for(tmp_path: Path) -> None:
    old = plan(series(), patients=1)
    assert plan_for(tmp_path / "new", old) is old
    old.save(tmp_path)
    of_a_newer_index = plan(series(prefix="def"), patients=1)
    assert plan_for(tmp_path, of_a_newer_index) == old


def test_a_folder_takes_a_plan_that_adds_to_its_own(tmp_path: Path) -> None:
    plan(series(), patients=1).save(tmp_path)
    more = plan(series(), series("P2", "1.2.4"), patients=2)
    assert plan_for(tmp_path, more) is more


def test_another_plan_and_other_files_are_refused(tmp_path: Path) -> None:
    plan(series(), series("P2", "1.2.4"), patients=2).save(tmp_path)
    with pytest.raises(AlreadyExistsError, match=r"another plan: 1 of its 2 series .*patients 2.*patients 1"):
        plan_for(tmp_path, plan(series(), patients=1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(AlreadyExistsError, match=r"not empty \(1 entries\)"):
        plan_for(other, plan(series()))
    (tmp_path / FetchPlan.NAME).write_text("{")
    with pytest.raises(DamagedArtifactError, match="Move it aside"):
        plan_for(tmp_path, plan(series()))


@pytest.mark.parametrize(
    ("patient", "folder"), [("LIDC-IDRI-0001", "LIDC-IDRI-0001"), ("../a b", "_.._a_b"), ("/etc", "_etc"), ("", "_")]
)
def test_a_patient_id_leads_nowhere_else(tmp_path: Path, patient: str, folder: str) -> None:
    assert series_folder(tmp_path, series(patient)) == tmp_path / DATA / folder / "1.2.3"


def test_space_is_checked_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = plan(series(num_images=2, num_bytes=3_000_000_000))
    usage = namedtuple("usage", "total used free")  # as shutil's
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, 2_900_000_000))
    with pytest.raises(InputError, match=r"3.00 GB are still to be fetched, and 2.90 GB are free"):
        check_space(tmp_path / "below" / "there", wanted)
    place = series_folder(tmp_path, wanted.series[0])
    place.mkdir(parents=True)
    with (place / "one.dcm").open("wb") as stream:
        os.truncate(stream.fileno(), 200_000_000)  # sparse
    assert bytes_there(tmp_path, wanted) == 200_000_000
    check_space(tmp_path, wanted)


# ---- attribution ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [("CC BY-NC 3.0", True), ("CC BY-NC 4.0", True), ("CC BY-NC-SA 4.0", True), ("CC BY 4.0", False), ("", False)],
)
def test_what_forbids_commercial_use(licence: str, forbidden: bool) -> None:
    (share,) = licences([series(licence=licence)])
    assert share.forbids_commercial_use is forbidden


def test_attribution_names_licences_data_sets_and_citations() -> None:
    planned = plan(
        series("P1", "1.1"),
        series("P1", "1.2"),
        series("P2", "1.3", licence="CC BY-NC 4.0", doi="10.1/b"),
        series("P3", "1.4", doi=""),
    )
    text = attribution(planned.model_copy(update={"citations": {DOI: "Doe, J. (2020). Phantoms."}}))
    assert "4 DICOM series of 3 patient(s)" in text
    table = re.findall(r"(?m)^\| (C.*) \| (\d+) \| (.*) \|$", text)
    assert table == [
        ("CC BY 4.0", "1", "no DOI in the index"),
        ("CC BY 4.0", "2", f"https://doi.org/{DOI}"),
        ("CC BY-NC 4.0", "1", "https://doi.org/10.1/b"),
    ]
    assert "NC licences forbid commercial use" in text
    assert "- Doe, J. (2020). Phantoms.\n" in text
    assert "The index has no citation of this data set; its page has it: https://doi.org/10.1/b" in text
    assert "10.1148/rg.230180" in text
    assert "commercial" not in attribution(plan(series()))
    assert "P1" not in text


# ---- downloads -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def module_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeIdc]:
    with fake_idc(tmp_path_factory.mktemp("idc")) as archive:
        yield archive


@pytest.fixture
def archive(module_archive: FakeIdc, monkeypatch: pytest.MonkeyPatch) -> FakeIdc:
    """The archive, without faults and with nothing asked of it; a place of one's own in the environment is not used."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr("storage.idc_bucket.RETRIES", 0)
    module_archive.asked.clear()
    module_archive.fault = no_fault
    return module_archive


@pytest.fixture
def wanted(archive: FakeIdc) -> FetchPlan:
    return make_plan(IdcIndex(archive.index), Selection(collection=COLLECTION))


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / DATA).rglob("*") if path.is_file()}


def expected(archive: FakeIdc) -> dict[str, bytes]:
    return {key.rpartition("/")[2]: data for key, data in archive.files.items()}


def test_every_image_arrives_as_it_is_in_the_archive(archive: FakeIdc, wanted: FetchPlan, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    done = fetch(wanted, tmp_path, endpoint=archive.endpoint, progress=lambda *each: calls.append(each))
    assert images(tmp_path) == expected(archive)
    assert done == Fetched(num_downloaded=len(archive.files), num_bytes=wanted.num_bytes)
    assert calls == [(n + 1, wanted.num_images) for n in range(wanted.num_images)]
    assert FetchPlan.load(tmp_path) == wanted
    assert (tmp_path / "ATTRIBUTION.md").read_text() == attribution(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ATTRIBUTION.md", DATA, "fetch.json"]


def test_what_is_there_and_whole_is_not_downloaded_again(archive: FakeIdc, wanted: FetchPlan, tmp_path: Path) -> None:
    fetch(wanted, tmp_path, endpoint=archive.endpoint)
    archive.asked.clear()
    missing, short, changed = sorted((tmp_path / DATA).rglob("*.dcm"))[:3]
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    done = fetch(wanted, tmp_path, endpoint=archive.endpoint)
    assert done.num_downloaded == 3
    assert done.num_there == wanted.num_images - 3
    assert sorted(path.rpartition("/")[2] for path in archive.asked) == sorted(
        p.name for p in (missing, short, changed)
    )
    assert images(tmp_path) == expected(archive)


def test_an_image_changed_on_the_way_is_asked_for_again(archive: FakeIdc, wanted: FetchPlan, tmp_path: Path) -> None:
    hit: list[str] = []

    def once(path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if "list-type" in path or hit:
            return status, body
        hit.append(path)
        return status, bytes([body[0] ^ 1]) + body[1:]

    archive.fault = once
    fetch(wanted, tmp_path, endpoint=archive.endpoint, connections=1)
    assert archive.asked.count(hit[0]) == 2
    assert images(tmp_path) == expected(archive)


def test_an_image_that_stays_changed_is_never_kept(archive: FakeIdc, wanted: FetchPlan, tmp_path: Path) -> None:
    bad = sorted(archive.files)[3]
    archive.fault = lambda path, status, body: (status, bytes(len(body)) if path.endswith(bad) else body)
    with pytest.raises(
        DamagedArtifactError, match=rf"{bad} came with MD5 [0-9a-f]{{32}}, expected [0-9a-f]{{32}}"
    ) as raised:
        fetch(wanted, tmp_path, endpoint=archive.endpoint)
    assert str(raised.value).isprintable()
    there = images(tmp_path)
    assert bad.rpartition("/")[2] not in there
    assert there.items() <= expected(archive).items()  # no part of a file, no temporary one
    archive.fault = no_fault
    fetch(wanted, tmp_path, endpoint=archive.endpoint)
    assert images(tmp_path) == expected(archive)


def test_a_series_that_is_not_as_the_index_says_is_refused(archive: FakeIdc, wanted: FetchPlan, tmp_path: Path) -> None:
    first = wanted.series[0]
    for change in ({"num_images": first.num_images + 1}, {"num_bytes": first.num_bytes - 1}, {"prefix": "nobody"}):
        other = wanted.model_copy(update={"series": (first.model_copy(update=change),)})
        with pytest.raises(DamagedArtifactError, match=r"the index says .*pip install -U idc-index-data"):
            fetch(other, tmp_path, endpoint=archive.endpoint)
    assert archive.asked == []


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (403, UnreadableError, "refused access to s3://idc-open-data/"),
        (404, MissingArtifactError, "Install the newest index"),
        (503, UnreadableError, "check the network and its proxy"),
    ],
)
def test_a_refusal_is_one_sentence(
    archive: FakeIdc, wanted: FetchPlan, tmp_path: Path, status: int, error: type[Exception], words: str
) -> None:
    archive.fault = lambda path, old, body: (old, body) if "list-type" in path else (status, b"")
    with pytest.raises(error, match=words) as raised:
        fetch(wanted, tmp_path, endpoint=archive.endpoint)
    assert str(raised.value).isprintable()
    assert images(tmp_path) == {}


def test_no_network_is_one_sentence(archive: FakeIdc, wanted: FetchPlan, tmp_path: Path) -> None:
    with pytest.raises(
        UnreadableError, match=r"cannot be read from http://127\.0\.0\.1:9 .*goes on where it was stopped"
    ) as raised:
        fetch(wanted, tmp_path, endpoint="http://127.0.0.1:9")
    assert str(raised.value).isprintable()
    assert FetchPlan.load(tmp_path) == wanted  # the same command goes on


def test_a_bucket_that_is_not_there(archive: FakeIdc, wanted: FetchPlan, tmp_path: Path) -> None:
    other = wanted.model_copy(update={"series": (wanted.series[0].model_copy(update={"bucket": "elsewhere"}),)})
    with pytest.raises(MissingArtifactError, match="s3://elsewhere/"):
        fetch(other, tmp_path, endpoint=archive.endpoint)


def test_an_object_without_md5_is_checked_by_size(archive: FakeIdc, tmp_path: Path) -> None:
    """S3 has no MD5 of what was uploaded in parts: its ETag says how many there were."""
    key, data = "parts/one.dcm", bytes(5 << 20) + b"end"
    upload = archive.client.create_multipart_upload(Bucket=BUCKET, Key=key, ACL="public-read")
    named = {"Bucket": BUCKET, "Key": key, "UploadId": upload["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": archive.client.upload_part(**named, PartNumber=number, Body=piece)["ETag"]}
        for number, piece in ((1, data[: 5 << 20]), (2, data[5 << 20 :]))
    ]
    archive.client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    wanted = plan(series(prefix="parts", num_images=1, num_bytes=len(data)))
    done = fetch(wanted, tmp_path, endpoint=archive.endpoint)
    assert done == Fetched(num_downloaded=1, num_bytes=len(data), num_size_only=1)
    assert images(tmp_path) == {"one.dcm": data}


def test_difference_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    md5 = "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, A.5
    assert BucketObject("k", 3, md5).differs(path) == ""
    assert BucketObject("k", 3, None).differs(path) == ""
    assert BucketObject("k", 4, md5).differs(path) == "3 bytes, expected 4"
    assert BucketObject("k", 3, "0" * 32).differs(path) == f"MD5 {md5}, expected {'0' * 32}"
