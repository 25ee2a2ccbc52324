"""Decoding: every transfer syntax gives the values that were stored, and nothing is allocated on the word of a header."""

import base64
import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import compress

from storage.errors import UnusableSeriesError
from storage.geometry import FILL_HU
from storage.sources.dicom_codecs import FrameReader, check_claim, codestream
from storage.sources.dicom_errors import DicomFault
from storage.sources.dicom_file import read_data_set
from storage.sources.dicom_pixels import plane_hu, read_stack, without_overlays
from storage.sources.dicom_planes import Plane
from storage.sources.source import Limits

SYNTAXES = Path("/work/shared/ct/robustness/transfer_syntaxes")
# 12 rows × 16 columns, value 100 x + 7 y² (− 1024 where signed), written by OpenJPH 0.26.3, in RPCL order.
_HTJ2K = {
    0: "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI"
    "/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAKEAAf+TwAAmF/sFB3QAAMAAEsAAEwAiAod0AB78Aod0AMAAE0AAE4COHQICdAAvX/4AYjQAwAAVMAAF"
    "pMDAwKBiMYJ2APe+7733CilEiJAAAA9zJDG4AMAAK2AAF1pGo9FoNP7ninpxAncA7W7btm3btrtt27Zt20DSQNJA0kDSQNJA0kDSQPIEIAIIQgAx/Xr9ZfMbMbAB"
    "/9k=",
    1: "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI"
    "/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAKAAAf+TwAAlFwIHdAAAwAASwAATACICh3QAHvwCh3QAwAATQAATgI4dAgJ0AC9f/gBiNADAABUwAAWk"
    "wMDAoGIxgnYA977vvfcKKUSIkAAAD3MkMbgAwAArYAAXWkaj0Wg0/ueKenECdwDtbtu2bdu2u23btm3bQNJA0kDSQNJA0kDSQNJA8gQgAghCADH9ev1l8xsxsAH/"
    "2Q==",
}  # fmt: skip


def image(stored: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian) -> Dataset:
    """A data set with frames (frames, rows, columns) or one image (rows, columns), uncompressed whatever `syntax` says."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = uid.CTImageStorage, "1.2.3"
    data.Rows, data.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        data.NumberOfFrames = len(stored)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * stored.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(stored.dtype.kind == "i")
    data.PixelData = stored.tobytes()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = uid.CTImageStorage, "1.2.3"
    return data


def encapsulated(frames: list[bytes], like: np.ndarray, syntax: str) -> Dataset:
    data = image(like, syntax)
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    return data


def stored_values(data: Dataset) -> np.ndarray:
    """The pixels of the first or only frame."""
    return FrameReader(data).read(0)


def written(data: Dataset) -> Dataset:
    """The data set after it was written to a file and read as ingest reads it."""
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return read_data_set(buffer)


def noise(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray:
    low, high = (-2000, 3000) if dtype == "int16" else (0, 250 if dtype == "uint8" else 60000)
    return np.random.default_rng(3).integers(low, high, shape).astype(dtype)


def fault_of(data: Dataset, frame: int = 0) -> tuple[str, str]:
    with pytest.raises(DicomFault) as caught:
        FrameReader(data).read(frame)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("syntax", "most_hu", "mean_hu"),
    [
        ("1.2.840.10008.1.2", 0, 0), ("1.2.840.10008.1.2.1", 0, 0), ("1.2.840.10008.1.2.1.99", 0, 0), ("1.2.840.10008.1.2.2", 0, 0),
        ("1.2.840.10008.1.2.5", 0, 0), ("1.2.840.10008.1.2.4.57", 0, 0), ("1.2.840.10008.1.2.4.70", 0, 0),
        ("1.2.840.10008.1.2.4.80", 0, 0), ("1.2.840.10008.1.2.4.90", 0, 0),
        # lossy: near-lossless by 1; wavelets; 12 bits and 8 bits of cosine transform over a range of 4400 and 6300 HU
        ("1.2.840.10008.1.2.4.81", 1, 0.7), ("1.2.840.10008.1.2.4.91", 5, 0.6), ("1.2.840.10008.1.2.4.51", 36, 4),
        ("1.2.840.10008.1.2.4.53", 36, 4), ("1.2.840.10008.1.2.4.55", 36, 4), ("1.2.840.10008.1.2.4.50", 65, 20),
    ],
)  # fmt: skip
def test_real_files_of_every_transfer_syntax(syntax: str, most_hu: float, mean_hu: float) -> None:
    (path,) = SYNTAXES.glob(f"*_{syntax}.dcm")
    with (SYNTAXES / "CTImage.dcm").open("rb") as stream:
        reference = stored_values(read_data_set(stream)).astype(float) - 1024
    assert (reference.min(), reference.max()) == (-3024, 1378)
    with path.open("rb") as stream:
        data = read_data_set(stream)
    found = stored_values(data)  # the stream is closed
    assert found.dtype.isnative
    off = np.abs(found * float(data.RescaleSlope) + float(data.RescaleIntercept) - reference)
    assert off.max() <= most_hu
    assert off.mean() <= mean_hu


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("kind", [201, 202, 203])
def test_htj2k(signed: int, kind: int) -> None:
    y, x = np.mgrid[:12, :16]
    expected = (100 * x + 7 * y * y - 1024 * signed).astype("<i2" if signed else "<u2")
    data = encapsulated([base64.b64decode(_HTJ2K[signed])], expected, f"1.2.840.10008.1.2.4.{kind}")
    assert np.array_equal(stored_values(written(data)), expected)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_round_trip_of_frames(dtype: str, syntax: str) -> None:
    stored = noise((3, 40, 48), dtype)
    data = image(stored)
    compress(data, syntax, generate_instance_uid=False)
    reader = FrameReader(written(data))
    for index in (2, 0, 1):
        found = reader.read(index)
        assert found.dtype == np.dtype(dtype)
        assert np.array_equal(found, stored[index])


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16"])
def test_uncompressed_in_every_encoding(syntax: str, dtype: str) -> None:
    stored = noise((2, 7, 9), dtype)
    data = image(stored, syntax)
    if syntax == uid.ExplicitVRBigEndian:
        data.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        data["PixelData"].VR = "OB" if dtype == "uint8" else "OW"
    reader = FrameReader(written(data))
    for index in range(2):
        assert np.array_equal(reader.read(index), stored[index])


def test_uncompressed_and_deflated_frames_in_capsules() -> None:
    stored = noise((2, 8, 10))
    plain = [frame.tobytes() for frame in stored]
    deflated = []
    for frame in plain:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        deflated.append(deflater.compress(frame) + deflater.flush())
    for frames, syntax in ((plain, "1.2.840.10008.1.2.1.98"), (deflated, "1.2.840.10008.1.2.8.1")):
        reader = FrameReader(encapsulated(frames, stored, syntax))
        assert np.array_equal(np.stack([reader.read(0), reader.read(1)]), stored)


def test_a_bomb_in_a_deflated_frame_is_inflated_to_the_frame_alone() -> None:
    stored = np.zeros((8, 8), "<i2")
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(bytes(1 << 26)) + deflater.flush()
    assert np.array_equal(stored_values(encapsulated([bomb], stored, "1.2.840.10008.1.2.8.1")), stored)


def test_extended_offset_table_and_fragments() -> None:
    stored = noise((3, 20, 24))
    data = image(stored)
    compress(data, uid.RLELossless, generate_instance_uid=False)
    frames = FrameReader(data)._frames
    data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    data["PixelData"].VR = "OB"
    assert np.array_equal(FrameReader(written(data)).read(2), stored[2])
    one = image(stored[0])
    compress(one, uid.JPEGLSLossless, generate_instance_uid=False)
    one.PixelData = encapsulate(FrameReader(one)._frames, fragments_per_frame=2, has_bot=False)
    assert np.array_equal(stored_values(written(one)), stored[0])


@pytest.mark.parametrize("value", [1, 0])
def test_jpeg_lossless_of_unsigned_and_signed_values(value: int) -> None:
    """GDCM reads files and rescales them: what is rescaled here is undone nowhere."""
    (path,) = SYNTAXES.glob("*4.70.dcm")
    data = dcmread(path)
    data.RescaleSlope, data.RescaleIntercept = 3, 17
    data.PixelRepresentation = value
    found = stored_values(data)
    with (SYNTAXES / "CTImage.dcm").open("rb") as stream:
        expected = stored_values(read_data_set(stream))
    assert np.array_equal(found, expected if value else expected.view("u2"))


# -- what a header or a compressed image claims


def test_pixels_that_are_missing_or_too_few() -> None:
    data = image(noise((10, 12)))
    data.PixelData = data.PixelData[:-2]
    assert fault_of(data) == ("unreadable_pixels", "238 bytes of pixels, 1 × 10 × 12 need 240")
    del data.PixelData
    assert fault_of(data) == ("unreadable_pixels", "no pixel data")
    data.FloatPixelData = bytes(480)
    assert fault_of(data) == ("unsupported_pixels", "floating-point pixels")
    data = image(noise((2, 10, 12)))
    assert fault_of(data, 2) == ("unreadable_pixels", "2 frames, number 3 was expected")


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        ("Rows", 0, "bad_number"), ("Rows", None, "bad_number"), ("BitsAllocated", 12, "unsupported_pixels"),
        ("BitsStored", 17, "bad_number"), ("PixelRepresentation", 2, "bad_number"), ("SamplesPerPixel", 3, "unsupported_pixels"),
        ("PhotometricInterpretation", "PALETTE COLOR", "unsupported_pixels"), ("Columns", 60000, "too_costly"),
    ],
)  # fmt: skip
def test_headers_that_describe_no_ct_pixels(tag: str, value: object, reason: str) -> None:
    data = image(noise((10, 12)))
    setattr(data, tag, value)
    assert fault_of(data)[0] == reason


@pytest.mark.parametrize("tag", ["SamplesPerPixel", "PhotometricInterpretation", "BitsStored"])
def test_tags_that_need_not_be_there(tag: str) -> None:
    stored = noise((10, 12))
    data = image(stored)
    delattr(data, tag)
    assert np.array_equal(stored_values(data), stored)


def resized(frame: bytes, rows: int, columns: int) -> bytes:
    """A compressed image that claims another size."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        return frame[:8] + struct.pack(">IIIIII", columns, rows, 0, 0, columns, rows) + frame[32:]
    at = next(k for k in range(len(frame)) if frame[k] == 0xFF and frame[k + 1] in (0xC0, 0xC1, 0xC3, 0xF7))
    return frame[: at + 5] + struct.pack(">HH", rows, columns) + frame[at + 9 :]


@pytest.mark.parametrize("syntax", ["4.57", "4.70", "4.50", "4.80", "4.90"])
@pytest.mark.parametrize("size", [(60000, 60000), (511, 512), (512, 513), (65535, 1)])
def test_compressed_images_of_another_size(syntax: str, size: tuple[int, int]) -> None:
    (path,) = SYNTAXES.glob(f"*1.2.{syntax}.dcm")
    data = dcmread(path)
    frame = resized(FrameReader(data)._frames[0], *size)
    assert (codestream(frame).rows, codestream(frame).columns) == size
    data.PixelData = encapsulate([frame])
    before = psutil.Process().memory_info().rss
    reason, detail = fault_of(data)
    assert reason == "unreadable_pixels"
    assert detail == f"a compressed image of {size[0]} × {size[1]} pixels, its header says 512 × 512"
    assert psutil.Process().memory_info().rss - before < 64 << 20


@pytest.mark.parametrize("syntax", ["4.57", "4.70", "4.50", "4.80", "4.90", "5"])
def test_compressed_images_that_are_cut_off_or_damaged(syntax: str) -> None:
    (path,) = SYNTAXES.glob(f"*1.2.{syntax}.dcm")
    data = dcmread(path)
    frame = FrameReader(data)._frames[0]
    for broken in (frame[: len(frame) // 3], frame[:20], b"", bytes(1000)):
        data.PixelData = encapsulate([broken]) if broken else encapsulate([b"\0\0"])
        reason, shape = "", (512, 512)
        try:
            shape = stored_values(data).shape  # a decoder may fill what is missing at the end
        except DicomFault as fault:
            reason = fault.reason
        assert reason == "unreadable_pixels" or (reason, broken) == ("", frame[: len(frame) // 3])
        assert shape == (512, 512)


def test_frames_that_are_not_there() -> None:
    stored = noise((3, 20, 24))
    data = image(stored)
    compress(data, uid.RLELossless, generate_instance_uid=False)
    data.NumberOfFrames = 4
    assert fault_of(data)[0] == "unreadable_pixels"
    data.NumberOfFrames = 2
    assert fault_of(data) == ("unreadable_pixels", "more frames, its header says 2")


def test_unknown_and_retired_transfer_syntaxes() -> None:
    data = encapsulated([b"abcd"], noise((10, 12)), "1.2.840.10008.1.2.4.999")  # in nobody's list
    none = "for which there is no decoder"
    assert fault_of(data) == ("unreadable_pixels", f"transfer syntax 1.2.840.10008.1.2.4.999, {none}")
    data.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    assert fault_of(data) == ("unreadable_pixels", f"transfer syntax {uid.MPEG2MPML.name}, {none}")
    data.file_meta = FileMetaDataset()
    data.file_meta.add_new("TransferSyntaxUID", "LO", "1.2.SMITH")
    assert fault_of(data) == ("unreadable_pixels", "an unknown transfer syntax, for which there is no decoder")


def test_few_bytes_that_claim_very_many_pixels() -> None:
    frames = [base64.b64decode(_HTJ2K[1])] * 400
    data = encapsulated(frames, noise((12, 16)), "1.2.840.10008.1.2.4.201")
    data.NumberOfFrames, data.Rows, data.Columns = 400, 4096, 4096
    assert fault_of(data)[0] == "too_costly"
    check_claim(256 << 20, 1)
    check_claim(1 << 30, (1 << 30) // 100 + 1)
    with pytest.raises(DicomFault, match="too_costly"):
        check_claim((256 << 20) + 1, 1 << 20)


SHIFTED = {  # dtype, BitsStored, HighBit
    "12 of 16 bits at the top, unsigned": ("uint16", 12, 15),
    "12 of 16 bits at the top, signed": ("int16", 12, 15),
    "12 of 16 bits in the middle, unsigned": ("uint16", 12, 13),
    "12 of 16 bits in the middle, signed": ("int16", 12, 13),
}


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize("name", SHIFTED)
def test_values_that_do_not_begin_at_the_lowest_bit(name: str, syntax: str) -> None:
    dtype, bits, high = SHIFTED[name]
    lowest = -(1 << (bits - 1)) if dtype.startswith("i") else 0
    expected = np.random.default_rng(4).integers(lowest, lowest + (1 << bits), (40, 48)).astype(dtype)
    stored = expected << (high + 1 - bits)
    if high < 8 * stored.dtype.itemsize - 1:  # an overlay above
        stored[3, 4:9] ^= stored.dtype.type(1 << (high + 1))
    data = image(stored)
    if syntax != uid.ExplicitVRLittleEndian:
        compress(data, syntax, generate_instance_uid=False)
    data.BitsStored, data.HighBit = bits, high
    found = stored_values(written(data))
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, expected)


def test_a_high_bit_that_values_contradict_is_refused() -> None:
    data = image(noise((40, 48), "uint16") % 4096)
    data.BitsStored, data.HighBit = 12, 15
    assert fault_of(data) == ("unsupported_pixels", "HighBit of 15 with BitsStored of 12")
    compress(data, uid.JPEG2000Lossless, generate_instance_uid=False)
    data.HighBit = 13
    assert fault_of(written(data)) == ("unsupported_pixels", "HighBit of 13 with BitsStored of 12")


@pytest.mark.parametrize(("bits", "high"), [(16, 11), (16, 16), (12, 11), (None, 11), (16, None), (12, None)])
def test_a_high_bit_that_can_mean_one_thing(bits: int | None, high: int | None) -> None:
    expected = noise((40, 48), "uint16") % 4096
    data = image(expected)
    for name, value in {"BitsStored": bits, "HighBit": high}.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    assert np.array_equal(stored_values(written(data)), expected)


@pytest.mark.parametrize(("stored_water", "padding"), [(0, (0, 0)), (1024, (1024, 1024)), (0, (-3000, 0))])
def test_padding_that_is_water_too_is_padding_only_at_the_border(stored_water: int, padding: tuple[int, int]) -> None:
    """A body of water in a field of view of soft tissue, with the outermost rows as padding."""
    stored = np.full((20, 20), stored_water + 40, dtype=np.int16)
    stored[:2] = stored_water
    stored[8:12, 8:12] = stored_water
    stored[15, 19] = stored_water  # one voxel of water at the border
    plane = Plane("a.dcm", shape=(20, 20), slope=1.0, intercept=-float(stored_water), padding=padding)
    hu = plane_hu(stored, plane)
    right = np.full((20, 20), 40.0)
    right[:2] = FILL_HU
    right[8:12, 8:12] = right[15, 19] = 0.0
    np.testing.assert_array_equal(hu, right)


def test_padding_that_is_air_is_padding_everywhere() -> None:
    stored = np.full((20, 20), 1064, dtype=np.int16)
    stored[9, 9] = 0
    hu = plane_hu(stored, Plane("a.dcm", shape=(20, 20), slope=1.0, intercept=-1024.0, padding=(0, 0)))
    assert hu[9, 9] == FILL_HU
    assert (hu == 40).sum() == 399


@pytest.mark.parametrize("damage", ["noise", "runs beyond the image", "segments of one place"])
def test_an_rle_decoder_that_panics_is_a_fault_of_its_image(damage: str) -> None:
    """Its plug-in is in Rust: a panic there is no Exception, and would end the process."""
    (path,) = SYNTAXES.glob("*1.2.5.dcm")
    data = dcmread(path)
    frame = FrameReader(data)._frames[0]
    runs = b"\x81\x00" * 300_000
    broken = {
        "noise": frame[:64] + np.random.default_rng(1).bytes(len(frame) - 64),
        "runs beyond the image": struct.pack("<16I", 2, 64, 64 + len(runs) // 2, *[0] * 13) + runs,
        "segments of one place": struct.pack("<16I", 15, *[64] * 15) + runs,
    }[damage]
    data.PixelData = encapsulate([broken])
    assert fault_of(data) == ("unreadable_pixels", "a damaged compressed image")


def test_a_jpeg_ls_image_that_is_cut_off_costs_no_seconds() -> None:
    (path,) = SYNTAXES.glob("*1.2.4.80.dcm")
    data = dcmread(path)
    frame = FrameReader(data)._frames[0]
    data.PixelData = encapsulate([frame[: len(frame) // 4]])
    began = time.process_time()
    assert fault_of(data) == ("unreadable_pixels", "a compressed image that is cut off")
    assert time.process_time() - began < 1  # the decoder takes 3.4 s


@pytest.mark.parametrize("number", [2, 100, 16384])
def test_a_jpeg_2000_image_of_many_components(number: int) -> None:
    (path,) = SYNTAXES.glob("*1.2.4.90.dcm")
    data = dcmread(path)
    frame = FrameReader(data)._frames[0]
    size = struct.pack(">H", 38 + 3 * number) + frame[6:40] + struct.pack(">H", number)
    data.PixelData = encapsulate([frame[:4] + size + number * frame[42:45] + frame[45:]])
    assert fault_of(data)[0] == "unreadable_pixels"


@pytest.mark.parametrize(
    ("values", "dtype", "right"),
    [
        ([5, 4095, 0x1005, 65530], "<u2", [5, 4095, 5, 65530]),  # 65530 is -6 in a type that says otherwise
        ([5, 2047, 0x1005, -6], "<i2", [5, 2047, 5, -6]),
        ([5, 2047, -2048, -6], "<i2", [5, 2047, -2048, -6]),
    ],
)
def test_what_lies_above_bits_stored(values: list[int], dtype: str, right: list[int]) -> None:
    stored = np.array([values], dtype=dtype)
    data = image(stored)
    data.BitsStored, data.HighBit = 12, 11
    found = without_overlays(FrameReader(data).read(0), data, None)
    assert found.tolist() == [right]


def stack_of(changes: dict[int, tuple[float, float]], *, pixels_of: dict[int, int] | None = None) -> tuple[str, ...]:
    """Notes of twelve planes of noisy lung and tissue, HU = stored - 1024; some with another rescale, or another's pixels."""
    noise = np.random.default_rng(0).integers(-60, 60, (12, 32, 32))
    stored = (np.where(np.arange(32) < 16, 174, 1064) + noise).astype(np.int16)
    planes = [
        Plane(
            f"{k}.dcm",
            shape=(32, 32),
            slope=changes.get(k, (1.0, -1024.0))[0],
            intercept=changes.get(k, (1.0, -1024.0))[1],
        )
        for k in range(12)
    ]
    places = {f"{k}.dcm": (pixels_of or {}).get(k, k) for k in range(12)}
    _, notes = read_stack(planes, lambda plane: stored[places[plane.file]], Limits(), "Series x")
    return notes


@pytest.mark.parametrize(
    "changes", [{5: (2.0, -1024.0)}, dict.fromkeys(range(6, 12), (1.0, -1524.0)), {0: (1.0, -1324.0)}]
)
def test_a_rescale_that_changes_though_the_pixels_do_not(changes: dict[int, tuple[float, float]]) -> None:
    with pytest.raises(UnusableSeriesError, match="in the slice before") as error:
        stack_of(changes)
    assert error.value.reason == "impossible_hu"


def test_slices_with_the_pixels_of_the_one_before_are_noted() -> None:
    assert stack_of({}) == ()
    (note,) = stack_of({}, pixels_of={4: 3, 5: 3})
    assert note.startswith("2 slices with the pixels of the one before")
