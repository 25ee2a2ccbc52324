"""Odd but valid series of single images: each is one volume (or several), with nothing refused."""

import shutil

import numpy as np
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.corpus.classic import Scan, put, save, scan, write, write_bare
from tests.corpus.member import Expect, Place, Write, member
from tests.corpus.world import Array, Geometry, rotated

_LARGE = (24, 34, 36)  # OpenJPEG encodes no smaller images
ORIENTATIONS = {
    "supine": Geometry(),
    "prone": Geometry((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "feet_first": Geometry((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "coronal": Geometry((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (8.0, 8.0, 8.0), (28, 26, 28)),
    "sagittal": Geometry((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (8.0, 8.0, 8.0), (28, 26, 28)),
    "oblique": Geometry(**rotated(7.0, 12.0)),
    "decubitus": Geometry((0.0, -1.0, 0.0), (1.0, 0.0, 0.0)),
    "tilted": Geometry(step=(0.0, 7.0 * float(np.tan(np.deg2rad(18.0))), 7.0)),
    "tilted_other_way": Geometry(step=(0.0, -7.0 * float(np.tan(np.deg2rad(12.0))), 7.0)),
}


def one(place: Place, made: Scan, **expect: object) -> Expect:
    """Written, and one volume."""
    save(place, made.slices)
    return Expect(volumes=(made.right(),), **expect)  # type: ignore[arg-type]


def _oriented(geometry: Geometry) -> Write:
    def write_it(place: Place) -> Expect:
        larger = 1 + 0.013 * place.world.seed
        spacing = tuple(round(mm * larger, 3) for mm in geometry.spacing_mm)
        moved = geometry.turned(centre_mm=place.world.geometry.centre_mm, spacing_mm=spacing)
        return one(place, scan(place, geometry=moved))

    return write_it


for _name, _geometry in ORIENTATIONS.items():
    member("valid", "classic", name=f"orientation_{_name}")(_oriented(_geometry))


@member("valid", "classic")
def plain(place: Place) -> Expect:
    return one(place, scan(place))


@member("valid", "classic")
def whole_hu(place: Place) -> Expect:
    return one(place, scan(place, slope=1))


@member("valid", "classic")
def files_in_reversed_order(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices[::-1])
    return Expect(volumes=(made.right(),))


@member("valid", "classic")
def rescale_differs_per_slice(place: Place) -> Expect:
    made = scan(place)

    def rescale(k: int, data) -> None:  # type: ignore[no-untyped-def]
        hu = np.frombuffer(data.PixelData, "<i2") / 16 - 1024
        slope, intercept = 0.05 + 0.001 * k, -1000.0 - 3.5 * k
        put(data, RescaleSlope=round(slope, 4), RescaleIntercept=intercept)
        data.PixelData = np.rint((hu - intercept) / round(slope, 4)).astype("<i2").tobytes()

    return one(place, made.each(rescale))


@member("valid", "classic")
def unsigned(place: Place) -> Expect:
    return one(place, scan(place, signed=False))


@member("valid", "classic")
def twelve_bit(place: Place) -> Expect:
    return one(place, scan(place, signed=False, bits=12, slope=1))


@member("valid", "classic")
def twelve_bit_with_overlay_in_high_bits(place: Place) -> Expect:
    """The four bits above BitsStored hold something else (PS3.5 8.1.1 of older editions): they are no HU."""
    made = scan(place, signed=False, bits=12, slope=1)

    def overlay(_: int, data) -> None:  # type: ignore[no-untyped-def]
        stored = np.frombuffer(data.PixelData, "<u2").copy()
        stored[::7] |= 0x1000
        data.PixelData = stored.tobytes()

    return one(place, made.each(overlay), notes=("bits above BitsStored, as overlays are, not used in 2. images",))


@member("valid", "classic")
def twelve_bit_at_the_top_of_sixteen(place: Place) -> Expect:
    made = scan(place, signed=False, bits=12, slope=1).put(HighBit=15)

    def shift(_: int, data) -> None:  # type: ignore[no-untyped-def]
        data.PixelData = (np.frombuffer(data.PixelData, "<u2") << 4).tobytes()

    return one(place, made.each(shift))


def _encoded(syntax: UID, *, signed: bool) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place, signed=signed, slope=1, geometry=place.world.whole.turned(shape=_LARGE))
        save(place, made.slices, syntax=syntax)
        return Expect(volumes=(made.right(),))

    return write_it


for _name, _syntax, _signed in (
    ("implicit", ImplicitVRLittleEndian, True),
    ("big_endian", ExplicitVRBigEndian, True),
    ("deflated", DeflatedExplicitVRLittleEndian, True),
    ("rle", RLELossless, True),
    ("jpeg_ls", JPEGLSLossless, False),
    ("jpeg_ls_signed", JPEGLSLossless, True),
    ("jpeg_2000", JPEG2000Lossless, False),
    ("jpeg_2000_signed", JPEG2000Lossless, True),
):
    member("valid", "multi-frame", name=f"syntax_{_name}")(_encoded(_syntax, signed=_signed))


@member("valid", "multi-frame")
def syntaxes_mixed(place: Place) -> Expect:
    made = scan(place, signed=False, slope=1)
    save(place, made.slices[:12], syntax=RLELossless)
    save(place, made.slices[12:], syntax=ImplicitVRLittleEndian, start=12)
    return Expect(volumes=(made.right(),))


@member("valid", "classic")
def no_extension(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices, name="I{:d}0")
    return Expect(volumes=(made.right(),))


@member("valid", "classic")
def slices_over_several_folders(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices[:9], folder="a")
    save(place, made.slices[9:], folder="b/c")
    return Expect(volumes=(made.right(),))


@member("valid", "classic")
def two_series_in_one_folder(place: Place) -> Expect:
    one_, other = scan(place), scan(place, series=2, hu=lambda w: place.world.hu(w) + 90)
    save(place, one_.slices)
    save(place, other.slices, start=100)
    return Expect(volumes=(one_.right(), other.right()))


@member("valid", "classic")
def kernels_of_one_study(place: Place) -> Expect:
    one_, other = scan(place), scan(place, series=2, hu=lambda w: place.world.hu(w) - 70)
    save(place, one_.slices, folder="B30")
    save(place, other.put(ConvolutionKernel="B70f").slices, folder="B70")
    return Expect(volumes=(one_.right(), other.right()))


@member("valid", "classic")
def localizer_beside(place: Place) -> Expect:
    scout = put(scan(place, series=7).slices[3], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    made = scan(place)
    write(place.folder / "scout" / "a.dcm", scout)
    return one(place, made, reasons=("localizer",))


@member("valid", "classic")
def other_modalities_beside(place: Place) -> Expect:
    """DX, CR, SEG and SR of the same study: one verdict per series."""
    classes = {"DX": "1.1.1", "CR": "1", "SEG": "66.4", "SR": "88.11"}
    for modality, sop in classes.items():
        data = put(scan(place, series=modality).slices[0], Modality=modality)
        data.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop}"
        if modality == "SR":
            put(data, PixelData=None, Rows=None, Columns=None, ImagePositionPatient=None)
        write(place.folder / modality / "1.dcm", data)
    return one(place, scan(place), reasons=("not_ct",) * 4)


@member("valid", "listing")
def lidc_layout(place: Place) -> Expect:
    """patient / study / series as TCIA lays it out, with the readers' XML, a DX and a LICENSE."""
    made = scan(place)
    series = f"{place.uid('study')}/{place.uid('series', 1)}"
    save(place, made.slices, folder=f"LIDC-IDRI-0001/{series}", name="1-{:03d}.dcm")
    (place.folder / "LIDC-IDRI-0001" / series / "069.xml").write_text("<?xml version='1.0'?><LidcReadMessage/>")
    (place.folder / "LICENSE").write_text("CC BY 3.0, words enough to be no image")
    picture = put(scan(place, series="dx").slices[0], Modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1")
    write(place.folder / "LIDC-IDRI-0001" / place.uid("study2") / "000.dcm", picture)
    return Expect(volumes=(made.right(),), reasons=("unknown_format",) * 2 + ("not_ct",))


@member("valid", "listing")
def dicomdir_beside(place: Place) -> Expect:
    from pydicom.fileset import FileSet

    made = scan(place).put(StudyTime="101010", StudyID="1")
    paths = save(place, made.slices, folder="in")
    files = FileSet()
    for path in paths:
        files.add(path)
    files.write(place.folder / "out")
    shutil.rmtree(place.folder / "in")
    return Expect(volumes=(made.right(),), reasons=("dicomdir",))


@member("valid", "classic")
def acquisition_number_per_slice(place: Place) -> Expect:
    """Step and shoot: the table stands for every slice."""
    return one(place, scan(place).each(lambda k, d: put(d, AcquisitionNumber=k + 1)))


@member("valid", "classic")
def acquisition_number_per_four_slices(place: Place) -> Expect:
    return one(place, scan(place).each(lambda k, d: put(d, AcquisitionNumber=k // 4 + 1)))


@member("valid", "classic")
def acquisition_in_two_halves(place: Place) -> Expect:
    return one(place, scan(place).each(lambda k, d: put(d, AcquisitionNumber=1 + (k >= 12))))


@member("valid", "classic")
def without_frame_of_reference(place: Place) -> Expect:
    return one(place, scan(place).put(FrameOfReferenceUID=None))


@member("valid", "classic")
def without_modality(place: Place) -> Expect:
    return one(place, scan(place).put(Modality=None))


@member("valid", "classic")
def without_instance_and_acquisition_number(place: Place) -> Expect:
    return one(place, scan(place).put(InstanceNumber=None, AcquisitionNumber=None))


@member("valid", "classic")
def without_body_part(place: Place) -> Expect:
    return one(place, scan(place).put(BodyPartExamined=None))


@member("valid", "classic")
def rescale_type_hu_mod(place: Place) -> Expect:
    return one(place, scan(place).put(RescaleType="HU_MOD"))


@member("valid", "plausible")
def rescale_type_absent(place: Place) -> Expect:
    return one(place, scan(place).put(RescaleType=None), notes=("(?i)rescale ?type",))


@member("valid", "plausible")
def rescale_type_unspecified(place: Place) -> Expect:
    return one(place, scan(place).put(RescaleType="US"), notes=("(?i)rescale ?type",))


def top_rows(geometry: Geometry) -> Array:
    """The first rows of every slice."""
    fill = np.zeros(geometry.shape, dtype=bool)
    fill[:, :5] = True
    return fill


def outside_circle(geometry: Geometry) -> Array:
    """What lies outside the largest circle in the plane."""
    middle = (np.asarray(geometry.shape[1:]) - 1) / 2
    j, i = np.meshgrid(*(np.arange(n) for n in geometry.shape[1:]), indexing="ij")
    outside = np.hypot(j - middle[0], i - middle[1]) > 13.2
    return np.broadcast_to(outside, geometry.shape).copy()


@member("valid", "classic")
def padding_declared(place: Place) -> Expect:
    made = scan(place, fill=outside_circle, fill_stored=-2000 * 16)
    for data in made.slices:
        data.add_new("PixelPaddingValue", "SS", -2000 * 16)
    return one(place, made)


@member("valid", "classic")
def padding_declared_with_the_other_sign(place: Place) -> Expect:
    """63536 as US in a signed image is -2000."""
    made = scan(place, slope=1, fill=outside_circle, fill_stored=-2000)
    for data in made.slices:
        data.add_new("PixelPaddingValue", "US", 63536)
    return one(place, made)


@member("valid", "classic")
def padding_range_within_hu(place: Place) -> Expect:
    made = scan(place, slope=1, fill=top_rows, fill_stored=2500)
    for data in made.slices:
        data.add_new("PixelPaddingValue", "SS", 2400)
        data.add_new("PixelPaddingRangeLimit", "SS", 2600)
    return one(place, made)


@member("valid", "classic")
def padding_undeclared_below_air(place: Place) -> Expect:
    return one(place, scan(place, slope=1, fill=outside_circle, fill_stored=-2000))


@member("valid", "classic")
def whole_slices_of_padding(place: Place) -> Expect:
    def ends(geometry: Geometry) -> Array:
        fill = np.zeros(geometry.shape, dtype=bool)
        fill[:2] = fill[-1:] = True
        return fill

    made = scan(place, slope=1, fill=ends, fill_stored=-2000)
    for data in made.slices:
        data.add_new("PixelPaddingValue", "SS", -2000)
    return one(place, made)


@member("valid", "classic")
def lossy_flags_and_private_tags(place: Place) -> Expect:
    def private(_: int, data) -> None:  # type: ignore[no-untyped-def]
        block = data.private_block(0x0019, "ACME 1.0", create=True)
        block.add_new(0x01, "LO", "words")
        block.add_new(0x02, "OB", b"\x00" * 300)
        data.LossyImageCompression = "01"

    return one(place, scan(place).each(private))


@member("valid", "classic")
def patient_id_with_blanks(place: Place) -> Expect:
    return one(place, scan(place).each(lambda k, d: put(d, PatientID=place.patient_id + " " * (k % 3))))


@member("valid", "multi-frame")
def trailing_padding_after_pixels(place: Place) -> Expect:
    """DataSetTrailingPadding, as some PACS write it."""
    return one(place, scan(place).each(lambda _, d: d.add_new(0xFFFCFFFC, "OB", b"\0" * 64)))


@member("valid", "multi-frame")
def odd_length_pixels_padded(place: Place) -> Expect:
    """Eight extra bytes after the last pixel."""
    return one(place, scan(place).each(lambda _, d: put(d, PixelData=d.PixelData + b"\0" * 8)))


@member("15", "multi-frame", broken=False)
def bare_explicit(place: Place) -> Expect:
    made = scan(place)
    for k, data in enumerate(made.slices):
        write_bare(place.folder / place.world.file_name.format(k), data, implicit=False)
    return Expect(volumes=(made.right(),))


@member("15", "multi-frame", broken=False)
def bare_implicit(place: Place) -> Expect:
    made = scan(place)
    for k, data in enumerate(made.slices):
        write_bare(place.folder / place.world.file_name.format(k), data, implicit=True)
    return Expect(volumes=(made.right(),))


@member("15", "multi-frame", broken=False)
def meta_without_preamble(place: Place) -> Expect:
    made = scan(place)
    for path in save(place, made.slices):
        path.write_bytes(path.read_bytes()[132:])
    return Expect(volumes=(made.right(),))


@member("15", "multi-frame", broken=False)
def some_slices_bare(place: Place) -> Expect:
    made = scan(place)
    save(place, made.slices[:20])
    for k, data in enumerate(made.slices[20:]):
        write_bare(place.folder / "late" / f"{k}", data, implicit=k % 2 == 0)
    return Expect(volumes=(made.right(),))
