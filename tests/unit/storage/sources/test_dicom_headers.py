"""Headers as they are found: without preamble, with numbers that are none, with names for UIDs, and made to do harm."""

import io
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.tag import Tag

from storage.errors import UnusableSeriesError
from storage.sources.dicom import DICOM
from storage.sources.dicom_codecs import FrameReader
from storage.sources.dicom_errors import DicomFault
from storage.sources.dicom_file import read_data_set
from storage.sources.source import FileFacts, Limits, ScanRequest, SourceVolume
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.processes import PATIENCE_S
from tests.unit.storage.dicom_files import linear_hu, write_series

SYNTAXES = Path("/work/shared/ct/robustness/transfer_syntaxes")


def facts_of(content: bytes) -> FileFacts | None:
    return DICOM.read_header(io.BytesIO(content), Path("x.dcm"))


def load(source: Path) -> list[SourceVolume]:
    files = tuple(sorted(path.name for path in source.iterdir()))
    return list(DICOM.load(ScanRequest(source, files, "1.2.3.4.5", Limits())))


def refusal(source: Path) -> UnusableSeriesError:
    with pytest.raises(UnusableSeriesError) as caught:
        load(source)
    return caught.value


_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def with_value(content: bytes, name: str, vr: str, value: bytes) -> bytes:
    """A file in explicit little endian with these bytes as the value of a top-level tag, whatever they are."""
    value += b" " if len(value) % 2 else b""
    wanted = Tag(name)
    kind = vr.encode()
    new = struct.pack("<HH2s", wanted.group, wanted.element, kind)
    new += struct.pack("<HI", 0, len(value)) if kind in _LONG else struct.pack("<H", len(value))
    (length,) = struct.unpack_from("<I", content, 140)
    position = 144 + length
    while position < len(content):
        group, number, kind, size = struct.unpack_from("<HH2sH", content, position)
        end = position + 8 + size
        if kind in _LONG:
            end = position + 12 + struct.unpack_from("<I", content, position + 8)[0]
        if (group, number) >= (wanted.group, wanted.element):
            rest = content[end:] if (group, number) == (wanted.group, wanted.element) else content[position:]
            return content[:position] + new + value + rest
        position = end
    raise AssertionError(name)


def write_with_value(folder: Path, name: str, vr: str, value: bytes, only: int | None = None, **series: Any) -> None:
    """A series with these bytes as the value of a tag in every slice, or in one."""
    write_series(folder, **series)
    for k, path in enumerate(sorted(folder.iterdir())):
        if only in (None, k):
            path.write_bytes(with_value(path.read_bytes(), name, vr, value))


def rewrite(folder: Path, write: Callable[[Dataset], bytes]) -> None:
    for path in folder.iterdir():
        path.write_bytes(write(pydicom.dcmread(path)))


# -- without preamble and meta information


def data_set_alone(data: Dataset, *, implicit: bool, little: bool) -> bytes:
    if not little:
        data.PixelData = np.frombuffer(data.PixelData, "<i2").astype(">i2").tobytes()
    buffer = io.BytesIO()
    bare = Dataset()
    bare.update(data)
    pydicom.dcmwrite(buffer, bare, implicit_vr=implicit, little_endian=little)
    return buffer.getvalue()


@pytest.mark.parametrize(("implicit", "little"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("preamble", [b"", bytes(128) + b"DICM"])
def test_data_sets_alone(tmp_path: Path, implicit: bool, little: bool, preamble: bytes) -> None:
    write_series(tmp_path / "with")
    write_series(tmp_path / "without")
    rewrite(tmp_path / "without", lambda data: preamble + data_set_alone(data, implicit=implicit, little=little))
    content = (tmp_path / "without" / "003.dcm").read_bytes()
    assert b"1.2.840.10008.1.2.1\0" not in content
    assert facts_of(content) == FileFacts("dicom", "1.2.3.4.5", patient_id="SECRET-ID-77", study="1.2.3.4.5.1")
    (expected,), (found,) = load(tmp_path / "with"), load(tmp_path / "without")
    assert found.pixel_digest == expected.pixel_digest
    assert found.geometry() == expected.geometry()


@pytest.mark.parametrize("syntax", ["4.57", "4.70", "4.80", "4.90", "5"])
def test_compressed_pixels_of_a_data_set_alone_are_recognised(syntax: str) -> None:
    (path,) = SYNTAXES.glob(f"*1.2.{syntax}.dcm")
    content = path.read_bytes()
    with path.open("rb") as stream:
        expected = FrameReader(read_data_set(stream)).read(0)
    (length,) = struct.unpack_from("<I", content, 140)  # of group 2, behind its first element
    assert np.array_equal(FrameReader(read_data_set(io.BytesIO(content[144 + length :]))).read(0), expected)


def test_compressed_pixels_of_an_unknown_kind() -> None:
    data = pydicom.dcmread(SYNTAXES / "CTImage.dcm")
    data.file_meta.TransferSyntaxUID = uid.RLELossless
    data.PixelData = encapsulate([b"who knows what this is, it is no image" * 5])
    buffer = io.BytesIO()
    data["PixelData"].VR = "OB"
    bare = Dataset()
    bare.update(data)
    bare["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(buffer, bare, implicit_vr=False, little_endian=True)
    with pytest.raises(DicomFault, match="unreadable_pixels: an unknown transfer syntax"):
        FrameReader(read_data_set(buffer)).read(0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00",
        b"\x08\x00\x05\x00CS\x02\x00A ",
        b"\x02\x00" * 60,
        b"\x00\x08" * 70,
        bytes(400),
        b"%PDF-1.7" * 40,
    ],
)
def test_what_only_begins_like_a_data_set_is_no_dicom(content: bytes) -> None:
    assert facts_of(content) is None


# -- numbers that are none


@pytest.mark.parametrize(
    ("name", "vr", "value", "reason", "words"),
    [
        ("PixelSpacing", "DS", b"1.3", "bad_number", "PixelSpacing of “1.3” instead of 2 numbers"),
        ("PixelSpacing", "DS", b"1,3\\1,7", "bad_number", "PixelSpacing of “1,3\\1,7”"),
        ("PixelSpacing", "DS", b"1.3\\1.7\\1", "bad_number", "PixelSpacing of “1.3\\1.7\\1”"),
        ("PixelSpacing", "DS", b"SMITH\\1.7", "bad_number", "PixelSpacing of text instead of 2 numbers"),
        ("PixelSpacing", "DS", b"nan\\1.7", "bad_number", "PixelSpacing"),
        ("PixelSpacing", "DS", b"1e400\\1.7", "bad_number", "PixelSpacing of “1e400\\1.7”"),
        ("PixelSpacing", "DS", b"", "missing_geometry", "PixelSpacing"),
        ("PixelSpacing", "DS", b" \\ ", "missing_geometry", "PixelSpacing"),
        ("PixelSpacing", "DS", b"0\\1.7", "missing_geometry", "positive PixelSpacing"),
        ("ImagePositionPatient", "DS", b"1\\2", "bad_number", "ImagePositionPatient of “1\\2” instead of 3 numbers"),
        ("ImagePositionPatient", "DS", b"1\\2\\1e30", "bad_number", "“1\\2\\1e30” instead of 3 numbers of at most 1e+06"),
        ("ImagePositionPatient", "DS", b"1\\2\\-inf", "bad_number", "ImagePositionPatient"),
        ("ImageOrientationPatient", "DS", b"1\\0\\0\\0\\1", "bad_number", "ImageOrientationPatient"),
        ("ImageOrientationPatient", "DS", b"1\\0\\0\\0\\1\\\xe4", "bad_number", "ImageOrientationPatient of text"),
        ("RescaleSlope", "DS", b"eins", "bad_number", "RescaleSlope of text instead of a number"),
        ("RescaleIntercept", "DS", b"-1024\\0", "bad_number", "RescaleIntercept of “-1024\\0”"),
        ("RescaleSlope", "DS", b"", "missing_rescale", "RescaleSlope"),
        ("Rows", "LO", b"x", "bad_number", "Rows of text instead of a number"),
        ("Rows", "DS", b"25.5", "bad_number", "Rows of 25.5 instead of a whole number"),
        ("Rows", "SS", b"\xff\xff", "bad_number", "Rows of -1 instead of a count"),
        ("BitsAllocated", "US", b"\x10\0\x10\0", "bad_number", "BitsAllocated of “16\\16” instead of a number"),
    ],
)  # fmt: skip
def test_numbers_that_matter(tmp_path: Path, name: str, vr: str, value: bytes, reason: str, words: str) -> None:
    write_with_value(tmp_path / "src", name, vr, value)
    facts = facts_of((tmp_path / "src" / "000.dcm").read_bytes())
    assert facts == FileFacts("dicom", "1.2.3.4.5", patient_id="SECRET-ID-77", study="1.2.3.4.5.1")
    error = refusal(tmp_path / "src")
    assert error.reason == reason
    assert words in str(error)
    assert "SMITH" not in str(error)


@pytest.mark.parametrize(
    ("name", "vr", "value"),
    [
        ("InstanceNumber", "IS", b"x"), ("InstanceNumber", "IS", b"1.5"), ("InstanceNumber", "IS", b"99999999999999"),
        ("AcquisitionNumber", "IS", b"1.5"), ("NumberOfFrames", "IS", b"1\\1"), ("NumberOfFrames", "IS", b"x"),
        ("NumberOfFrames", "IS", b"0"), ("NumberOfFrames", "IS", b"1.5"), ("KVP", "DS", b"hundred"), ("KVP", "DS", b"120\\80"),
        ("SliceThickness", "DS", b"1,25"), ("SliceThickness", "DS", b"nan"), ("WindowCenter", "DS", b"inf"),
        ("SeriesNumber", "IS", b"\xe4"), ("PatientAge", "AS", b"old"), ("PatientBirthDate", "DA", b"yesterday"),
        ("ImagesInAcquisition", "IS", b"many"), ("PixelPaddingValue", "LO", b"none"), ("StudyDate", "DA", b"\xff\xfe"),
        ("SpecificCharacterSet", "CS", b"ISO_IR 999"), ("SpecificCharacterSet", "CS", b"\\\\\\"), ("ImageType", "CS", b"\xe4\xf6"),
        ("SamplesPerPixel", "LO", b"one"), ("BitsStored", "US", b""),
    ],
)  # fmt: skip
def test_numbers_that_do_not_matter(tmp_path: Path, name: str, vr: str, value: bytes) -> None:
    write_series(tmp_path / "good")
    write_with_value(tmp_path / "src", name, vr, value)
    assert facts_of((tmp_path / "src" / "000.dcm").read_bytes()) == facts_of(
        (tmp_path / "good" / "000.dcm").read_bytes()
    )
    (found,), (expected,) = load(tmp_path / "src"), load(tmp_path / "good")
    assert found.pixel_digest == expected.pixel_digest
    assert all(np.isfinite(v) for v in found.attributes.values() if isinstance(v, float))


@pytest.mark.parametrize("vr", ["US", "DS", "IS", "SQ", "AT", "FD", "UN", "DA", "UI", "PN"])
def test_a_scan_reads_any_value_of_any_kind(tmp_path: Path, vr: str) -> None:
    write_series(tmp_path, shape=(1, 4, 4))
    content = (tmp_path / "000.dcm").read_bytes()
    for name in (
        "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "SeriesInstanceUID", "Rows"
    ):  # fmt: skip
        for value in (b"", b"\xff\xff\xff", b"x" * 9, b"1\\1", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\\" * 40):
            facts = facts_of(with_value(content, name, vr, value))
            assert facts is not None
            assert facts.format == "dicom"


def test_one_bad_series_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    source = tmp_path / "src"
    values = (
        ("KVP", "DS", b"120"),
        ("PixelSpacing", "DS", b"1.3"),
        ("NumberOfFrames", "IS", b"1\\1"),
        ("Rows", "LO", b"x"),
        ("SeriesInstanceUID", "US", b"\x01\x02"),
    )
    for number, value in enumerate(values):
        write_with_value(
            source / f"s{number}",
            *value,
            uid=f"1.2.3.{number}",
            patient_id=f"P{number}",
            hu=lambda world, number=number: linear_hu(world) + number,
        )
    report = ingest(source, tmp_path / "store", small_ingest())
    assert {"1.2.3.0", "1.2.3.2"} < {entry.series_uid for entry in report.committed}
    assert len(report.committed) == 3
    assert {entry.series_uid: entry.reason for entry in report.quarantined} == {
        "1.2.3.1": "bad_number",
        "1.2.3.3": "bad_number",
    }


@pytest.mark.parametrize("place", [0, 11, 23])
def test_one_bad_image_in_a_good_series_is_named(tmp_path: Path, place: int) -> None:
    write_with_value(tmp_path / "src", "ImagePositionPatient", "DS", b"1\\2", only=place)
    error = refusal(tmp_path / "src")  # it is a slice, and where it belongs is not known
    assert error.reason == "bad_number"
    assert error.file == f"{place:03d}.dcm"


# -- ids


@pytest.mark.parametrize(
    "name",
    ["SMITH^JOHN", "1.2.3 4", "19510203", "1.2." + "3" * 61, "1.2.x", "..", "ünicode", "3.4.5", "1.2.3.", "x" * 300],
)
def test_a_series_uid_that_is_none_is_hashed(tmp_path: Path, name: str) -> None:
    write_with_value(tmp_path / "src", "SeriesInstanceUID", "UI", name.encode("latin-1"))
    ids = {facts_of(path.read_bytes()).scan for path in (tmp_path / "src").iterdir()}  # type: ignore[union-attr]
    (found,) = ids
    assert found.startswith("series-")
    assert len(found) == 23
    int(found.removeprefix("series-"), 16)
    write_with_value(tmp_path / "other", "SeriesInstanceUID", "UI", b"OTHER", shape=(1, 4, 4))
    assert facts_of((tmp_path / "other" / "000.dcm").read_bytes()).scan != found  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name", ["1.2.3", "2.25.329800735698586629295641978511506172918", "1.2." + "3" * 60, "1.02.003"]
)
def test_a_series_uid_stays_as_it_is(tmp_path: Path, name: str) -> None:
    write_with_value(tmp_path, "SeriesInstanceUID", "UI", name.encode(), shape=(1, 4, 4))
    assert facts_of((tmp_path / "000.dcm").read_bytes()).scan == name  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["Modality", "SOPClassUID"])
def test_free_text_in_the_tags_of_a_verdict_is_not_repeated(tmp_path: Path, name: str) -> None:
    write_with_value(tmp_path, name, "LO", b"SMITH JOHN", shape=(1, 4, 4))
    facts = facts_of((tmp_path / "000.dcm").read_bytes())
    assert facts is not None
    assert facts.reason == "unreadable_file"
    assert "SMITH" not in facts.detail


def test_values_of_tags_do_not_reach_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_with_value(tmp_path / "src", "StudyInstanceUID", "UI", b"SMITH^JOHN")
    load(tmp_path / "src")
    assert "SMITH" not in caplog.text


# -- made to do harm


def header(syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    """Preamble, meta information and the first elements of a CT image, explicit little endian."""
    meta = element(2, 0x10, b"UI", syntax)
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


CT = element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + element(8, 0x60, b"CS", b"CT")
UNDEFINED = 0xFFFFFFFF


def long_element(group: int, number: int, vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", group, number, vr, 0, length)


def item(length: int) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, length)


SEQUENCE = long_element(8, 0x1140, b"SQ", UNDEFINED)


def bomb(num_mib: int) -> bytes:
    """A deflated data set with zeros in a private tag."""
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    parts = [deflater.compress(CT + long_element(9, 0x1001, b"OB", num_mib << 20))]
    parts += [deflater.compress(bytes(1 << 20)) for _ in range(num_mib)]
    return header(b"1.2.840.10008.1.2.1.99") + b"".join(parts) + deflater.flush()


_MEASURED = """
import io, sys, time
from pathlib import Path
from storage.sources.dicom import DICOM
from storage.sources.source import ScanRequest
path = Path(sys.argv[1])
start = time.process_time()  # other work on the machine changes it little
with path.open("rb") as stream:
    facts = DICOM.read_header(stream, path)
try:
    list(DICOM.load(ScanRequest(path.parent, (path.name,), "x")))
    loaded = "loaded"
except Exception as error:
    loaded = error.reason
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024
print(facts.reason, loaded, f"{time.process_time() - start:.2f}", peak)
"""


@pytest.mark.parametrize(
    ("content", "reason", "most_s", "most_mib"),
    [
        (lambda: bomb(1024), "too_costly", 2, 300),
        (lambda: bomb(60), "too_costly", 2, 300),
        (lambda: header() + CT + (SEQUENCE + item(UNDEFINED)) * 200_000, "unreadable_file", 2, 300),
        (lambda: header() + CT + SEQUENCE + item(0) * 700_000, "too_costly", 20, 500),
        (lambda: header() + CT + b"".join(element(9, k % 65536, b"LO", b"") for k in range(700_000)), "too_costly", 20, 500),
        (lambda: header() + b"".join(element(2, 0x1000 + k % 999, b"LO", b"") for k in range(700_000)), "too_costly", 20, 500),
        (lambda: header() + CT + long_element(9, 0x1001, b"OB", 0xFFFFFFF0) + bytes(1000), "unreadable_file", 2, 300),
        (lambda: header() + CT + long_element(9, 0x1001, b"OB", UNDEFINED) + bytes(9 << 20), "unreadable_file", 2, 300),
    ],
    ids=["bomb", "small bomb", "nested", "items", "elements", "meta", "length", "no end"],
)  # fmt: skip
def test_small_files_that_claim_much(
    tmp_path: Path, content: Callable[[], bytes], reason: str, most_s: float, most_mib: float
) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(content())
    assert path.stat().st_size < 10 << 20
    run = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(path)], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    scanned, loaded, seconds, peak = run.stdout.split()
    assert scanned == reason
    assert loaded in {"too_costly", "unreadable_file", "missing_geometry"}
    assert float(seconds) < most_s
    assert int(peak) < most_mib


def test_a_deflated_image_that_is_one_is_read(tmp_path: Path) -> None:
    write_series(tmp_path / "plain")
    write_series(tmp_path / "deflated")

    def deflated(data: Dataset) -> bytes:
        data.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    rewrite(tmp_path / "deflated", deflated)
    assert load(tmp_path / "deflated")[0].pixel_digest == load(tmp_path / "plain")[0].pixel_digest


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Rows": 60000, "Columns": 60000}, "too_costly"),
        ({"Rows": 13}, "unreadable_pixels"),
        ({"Rows": 52}, "unreadable_pixels"),
        ({"Columns": 27}, "unreadable_pixels"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "unreadable_pixels"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"NumberOfFrames": 2**31 - 1}, "multi_frame"),
    ],
)
def test_headers_that_lie_about_the_pixels(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    write_series(tmp_path / "src", change=lambda k, data: data.update(tags))
    start = time.process_time()
    assert refusal(tmp_path / "src").reason == reason
    assert time.process_time() - start < 5


def test_many_small_compressed_images_that_claim_to_be_large(tmp_path: Path) -> None:
    def change(k: int, data: Dataset) -> None:
        data.Rows = data.Columns = 4096
        data.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
        data["PixelData"].VR = "OB"

    write_series(tmp_path / "src", shape=(30, 4, 4), change=change)

    def compressed(data: Dataset) -> bytes:
        data.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
        buffer = io.BytesIO()
        data["PixelData"].is_undefined_length = True
        data.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    rewrite(tmp_path / "src", compressed)
    assert refusal(tmp_path / "src").reason == "too_costly"


@pytest.mark.parametrize("syntax", [None, uid.RLELossless])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.95])
def test_cut_off_files_are_odd_images_or_refused(tmp_path: Path, share: float, syntax: str | None) -> None:
    write_series(tmp_path / "src", shape=(24, 26, 28))
    path = tmp_path / "src" / "023.dcm"
    if syntax:
        data = pydicom.dcmread(path)
        compress(data, syntax, generate_instance_uid=False)
        data.save_as(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    named: list[tuple[str | None, str]]
    try:
        (volume,) = load(tmp_path / "src")
    except UnusableSeriesError as error:
        named = [(error.file, error.reason)]
    else:
        assert volume.hu.shape[0] == 23
        named = [(left.file, left.reason) for left in volume.left_out]
    ((file, reason),) = named
    assert file == "023.dcm"
    assert reason in {"unreadable_pixels", "unreadable_file", "bad_number", "missing_geometry"}


def test_random_damage_is_a_verdict(tmp_path: Path) -> None:
    """Three bytes of the header of every image are replaced; whatever comes of it is a volume or a named refusal."""
    write_series(tmp_path / "src", shape=(8, 8, 8))
    originals = {path: path.read_bytes() for path in (tmp_path / "src").iterdir()}
    draw = random.Random(5)
    reasons = set()
    for _ in range(150):
        places = [draw.randrange(132, 1100) for _ in range(3)]
        values = [draw.randrange(256) for _ in range(3)]
        for path, content in originals.items():
            damaged = bytearray(content)
            for place, value in zip(places, values, strict=True):
                damaged[place % len(damaged)] = value
            path.write_bytes(damaged)
            facts = facts_of(bytes(damaged))
            assert facts is None or facts.format == "dicom"
        try:
            reasons.add(load(tmp_path / "src")[0].hu.shape)
        except UnusableSeriesError as error:
            reasons.add(error.reason)
    assert (8, 8, 8) in reasons
    assert len(reasons) > 3
    assert "failed" not in reasons


# ---- damaged files are never taken for images of another kind ------------------------------------------------------------


def slice_bytes(
    tmp_path: Path, change: Callable[[Dataset], Any] = lambda data: None, syntax: str | None = None
) -> bytes:
    write_series(tmp_path / "slice", shape=(1, 8, 8), change=lambda k, data: change(data))
    (path,) = (tmp_path / "slice").iterdir()
    data = pydicom.dcmread(path)
    if syntax is not None:
        data.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    data.save_as(stream)
    return stream.getvalue()


@pytest.mark.parametrize("tail", ["nothing", "noise", "zeros"])
def test_a_header_that_breaks_off_anywhere_is_unreadable(tmp_path: Path, tail: str) -> None:
    content = slice_bytes(tmp_path)
    behind = {"nothing": b"", "noise": random.Random(4).randbytes(800), "zeros": bytes(800)}[tail]
    rows = content.index(b"\x28\x00\x10\x00US")
    for place in range(132, rows, 3):
        facts = facts_of(content[:place] + behind)
        assert facts is not None
        assert (place, facts.reason) == (place, "unreadable_file")
        assert facts.detail.startswith("it"), facts.detail


def test_a_deflated_data_set_that_breaks_off_or_is_damaged_is_unreadable(tmp_path: Path) -> None:
    content = slice_bytes(tmp_path, syntax=uid.DeflatedExplicitVRLittleEndian)
    begin = 132 + 12 + struct.unpack("<I", content[140:144])[0]
    for place in (begin, begin + 9, (begin + len(content)) // 2, len(content) - 3):
        facts = facts_of(content[:place])
        assert facts is not None
        assert (facts.reason, facts.detail) == ("unreadable_file", "its deflated data set ends early")
    facts = facts_of(content[:begin] + b"\xff" * 50 + content[begin + 50 :])
    assert facts is not None
    assert (facts.reason, facts.detail) == ("unreadable_file", "its header is damaged")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.9999"}, "unreadable_file"),  # CT by modality and meta information
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1"}, "unreadable_file"),
        ({"SOPClassUID": "noise"}, "unreadable_file"),
        ({"Modality": "C\xd4"}, "unreadable_file"),
        ({"Modality": "MR"}, "not_ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "XX"}, "not_ct"),
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1", "Modality": "OT"}, "not_ct"),  # Siemens' own
        ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, "not_ct"),
    ],
)
def test_what_says_the_kind_of_an_image_is_damaged_or_of_another(
    tmp_path: Path, tags: dict[str, str], reason: str
) -> None:
    content = slice_bytes(tmp_path)
    for name, value in tags.items():
        content = with_value(content, name, "UI" if name == "SOPClassUID" else "CS", value.encode("latin-1"))
    if "1107" in tags.get("SOPClassUID", ""):
        content = content.replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.3.12.2.1107.5.9.1\0\0\0\0\0\0\0", 1)
    facts = facts_of(content)
    assert facts is not None
    assert facts.reason == reason


def test_a_slice_that_is_noise_is_noted_on_its_neighbours(tmp_path: Path) -> None:
    write_series(tmp_path / "src", shape=(9, 8, 8))
    (tmp_path / "src" / "008.dcm").write_bytes(bytes(128) + b"DICM" + random.Random(4).randbytes(800))
    report = ingest(tmp_path / "src", tmp_path / "s", small_ingest(spacing_mm=4.0, num_levels=1), runner=Local(1))
    assert [entry.num_slices for entry in report.committed] == [8]
    assert [entry.reason for entry in report.quarantined] == ["unreadable_file"]
    assert any("1 file beside those of the scan cannot be read" in note for note in report.notes)
