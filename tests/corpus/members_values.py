"""Series whose stored values or header numbers are wrong: fill, HU that cannot be, numbers that are none, pixels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, RLELossless

from tests.corpus.classic import put, put_raw, save, scan, write
from tests.corpus.member import Expect, Place, Write, member
from tests.corpus.members_identity import _refused
from tests.corpus.members_valid import one, outside_circle, top_rows
from tests.corpus.world import Array, Geometry, Truth

_FILL = "(?i)fill|padding|no HU|not HU|beyond|above"


def corners(geometry: Geometry) -> Array:
    """Four corners of every slice."""
    j, i = np.meshgrid(*(np.arange(n) for n in geometry.shape[1:]), indexing="ij")
    far_j, far_i = np.minimum(j, geometry.shape[1] - 1 - j), np.minimum(i, geometry.shape[2] - 1 - i)
    return np.broadcast_to(far_i + far_j < 7, geometry.shape).copy()


# -- kind 4


def _undeclared(stored: int, fill: Any, intercept: float = -1024.0) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place, slope=1, signed=False, intercept=intercept, fill=fill, fill_stored=stored)
        return one(place, made, notes=(_FILL,))

    return write_it


for _name, _what in {
    "undeclared_63536_in_corners": (63536, corners),
    "undeclared_63536_outside_circle": (63536, outside_circle),
    "undeclared_65535_in_rows": (65535, top_rows),
    "undeclared_32768_outside_circle": (32768, outside_circle, 0.0 - 1000.0),
    "undeclared_62000_in_corners": (62000, corners),
    "undeclared_20000_hu_in_corners": (21024, corners),
    "undeclared_8000_hu_outside_circle": (9024, outside_circle),
    "undeclared_5096_hu_in_rows": (6120, top_rows),
}.items():
    member("4", "plausible", name=_name, broken=False)(_undeclared(*_what))


@member("4", "plausible", broken=False)
def declared_63536_and_undeclared_65535(place: Place) -> Expect:
    made = scan(place, slope=1, signed=False, fill=outside_circle, fill_stored=63536)
    for data in made.slices:
        stored = np.frombuffer(data.PixelData, "<u2").copy()
        at = np.flatnonzero(stored == 63536)
        stored[at[: len(at) // 2]] = 65535
        data.PixelData = stored.tobytes()
        data.add_new("PixelPaddingValue", "US", 63536)
    return one(place, made, notes=(_FILL,))


@member("4", "plausible", broken=False)
def undeclared_lowest_signed(place: Place) -> Expect:
    return one(place, scan(place, slope=1, fill=outside_circle, fill_stored=-32768))


# -- kind 5


def _rescaled(slope: float, intercept: float, reason: str) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place, slope=1).put(RescaleSlope=slope, RescaleIntercept=intercept)
        return _refused(place, made, reason)

    return write_it


for _name, _rescale in {
    "intercept_of_30000": (1.0, 30000.0, "impossible_hu"),
    "intercept_of_minus_20000": (1.0, -20000.0, "no_content|impossible_hu"),
    "slope_of_100": (100.0, -1024.0, "impossible_hu"),
    "slope_of_a_thousandth": (0.001, -1024.0, "no_content|impossible_hu|not_hu"),
    "intercept_missing_for_unsigned": (1.0, 0.0, "not_hu"),
}.items():
    member("5", "plausible", name=_name)(_rescaled(*_rescale))


@member("5", "plausible")
def constant_everywhere(place: Place) -> Expect:
    """One value in every voxel is no scan."""
    made = scan(place, hu=lambda w: np.full(w.shape[:-1], -1024.0))
    return _refused(place, made, "no_content")


@member("5", "plausible")
def intercept_of_30000_in_one_slice(place: Place) -> Expect:
    return _refused(place, scan(place).put_at([9], RescaleIntercept=30000), "impossible_hu")


@member("5", "plausible")
def intercept_of_5000_in_three_slices(place: Place) -> Expect:
    return _refused(place, scan(place).put_at([9, 10, 11], RescaleIntercept=5000), "impossible_hu")


def _holes(*which: int) -> Write:
    """A copy of which some blocks were never written: zero bytes in place of pixels."""

    def write_it(place: Place) -> Expect:
        made = scan(place)
        for k in which:
            made.slices[k].PixelData = bytes(len(made.slices[k].PixelData))
        return _refused(place, made, "no_content")

    return write_it


for _name, _slices in {"one_slice": (13,), "four_slices": (8, 9, 10, 11), "two_places": (3, 18)}.items():
    member("5", "plausible", name=f"zero_bytes_in_{_name}")(_holes(*_slices))


def _noise(stored: Array, rng: np.random.Generator) -> Array:
    """As bytes in the wrong order are, or pixels decoded from a wrong place."""
    return rng.integers(-1024, 3072, stored.shape).astype("<i2")


def _turned(stored: Array, rng: np.random.Generator) -> Array:
    """Upside down and left for right."""
    return stored[::-1]


def _other_pixels(change: Callable[[Array, np.random.Generator], Array], *which: int) -> Write:
    """Some slices with pixels that are not theirs."""

    def write_it(place: Place) -> Expect:
        made = scan(place, slope=1, intercept=0.0, signed=True)
        for k in which:
            stored = np.frombuffer(made.slices[k].PixelData, "<i2")
            made.slices[k].PixelData = change(stored, place.world.rng(place.name)).tobytes()
        return _refused(place, made, "impossible_hu")

    return write_it


member("5", "plausible", name="noise_in_two_slices")(_other_pixels(_noise, 9, 10))
member("5", "plausible", name="noise_in_the_last_slice")(_other_pixels(_noise, -1))
member("5", "plausible", name="one_slice_turned_in_its_plane")(_other_pixels(_turned, 9))


def last_slices(geometry: Geometry) -> Array:
    """The last three slices."""
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[-3:] = True
    return mask


@member("5", "plausible", broken=False)
def nothing_but_air_in_the_last_slices(place: Place) -> Expect:
    """Above a phantom, or beside what a resampled scan covers. It does not ring either."""
    made = scan(place, slope=1, signed=False, intercept=-1024.0, fill=last_slices, fill_stored=0)
    return one(place, made, notes=("nothing but air in 3 of",))


# -- kind 6


def _touching(fill: Any, sign: int = -1, stored: int = -2000) -> Write:
    """A body of 50 HU up to declared padding; a strip of air makes it a scan."""

    def write_it(place: Place) -> Expect:
        world = place.world

        def body(w: Array) -> Array:
            return np.full(w.shape[:-1], 50.0)

        geometry = world.whole.turned(spacing_mm=(7.7, 7.9, 7.1), shape=(24, 28, 30), whole=False)
        made = scan(place, geometry=geometry, slope=1, hu=body, fill=fill, fill_stored=stored)
        for data in made.slices:
            data.add_new("PixelPaddingValue", "SS", stored)
        made.truth |= {"inside": 2.0, "faces": 2.0}
        save(place, made.slices)
        # Nothing in it is air but the fill: refusing it for its values is right as well.
        return Expect(volumes=(made.right(),), alternatives=(Expect(reasons=("not_hu",)),))

    return write_it


for _name, _fill_of in {"circle": outside_circle, "rows": top_rows, "corners": corners}.items():
    member("6", "classic", name=f"body_touches_padding_{_name}", broken=False)(_touching(_fill_of))
member("6", "classic", name="body_touches_padding_above", broken=False)(_touching(outside_circle, 1, 3071))


def _body_in_air(fill: Any, stored: int, *, declared: bool) -> Write:
    """50 HU within lungs' air, the body reaching the padding."""

    def write_it(place: Place) -> Expect:
        geometry = place.world.whole.turned(spacing_mm=(7.7, 7.9, 7.1), shape=(24, 28, 30), whole=False)
        made = scan(
            place, geometry=geometry, slope=1, hu=lambda w: np.full(w.shape[:-1], 50.0), fill=fill, fill_stored=stored
        )
        lungs = np.zeros(geometry.shape, dtype=bool)
        lungs[9:15, 11:17, 12:18] = True
        for k, data in enumerate(made.slices):
            pixels = np.frombuffer(data.PixelData, "<i2").reshape(geometry.shape[1:]).copy()
            pixels[lungs[k]] = -900 + 1024
            data.PixelData = pixels.tobytes()
            if declared:
                data.add_new("PixelPaddingValue", "SS", stored)

        def hu(w: Array) -> Array:
            index = made.right().index_of(w)
            first, last = np.array([12, 11, 9]) - 6, np.array([17, 16, 14]) + 6
            near = ((index >= first) & (index <= last)).all(axis=-1)
            return np.where(near, np.nan, 50.0)  # not judged where lungs are near

        made.truth |= {"inside": 2.0, "faces": 2.0}
        save(place, made.slices)
        return Expect(volumes=(replace(made.right(), hu=hu),))

    return write_it


for _name, _which in {
    "circle_declared": (outside_circle, -2000, True),
    "rows_declared": (top_rows, -2000, True),
    "circle_declared_above": (outside_circle, 3071, True),
    "circle_below_air": (outside_circle, -2000, False),
    "circle_of_air_undeclared": (outside_circle, -1024 + 1024, False),
    "rows_of_air_undeclared": (top_rows, -1000 + 1024, False),
    "corners_above_undeclared": (corners, 8000 + 1024, False),
}.items():
    member("6", "classic", name=f"body_with_lungs_touches_padding_{_name}", broken=False)(
        _body_in_air(_which[0], _which[1], declared=_which[2])
    )


# -- kind 10


def beside(place: Place) -> tuple[Truth, ...]:
    """A good series beside a broken one, in the worlds of all seeds but the first: there all members lie in one source."""
    if place.world.seed == 0:
        return ()
    good = scan(place, series="neighbour", hu=lambda w: place.world.hu(w) - 40)
    save(place, good.slices, folder="neighbour")
    return (good.right(),)


def _raw(name: str, text: str, which: tuple[int, ...], reason: str) -> Write:
    """A tag that matters is no number; reason "" where it does not matter, ending in "or dropped" where that is a judgement."""

    def write_it(place: Place) -> Expect:
        made = scan(place)
        for k in which or range(24):
            put_raw(made.slices[k], name, text)
        save(place, made.slices)
        good = beside(place)
        dropped = Expect(volumes=(made.right(), *good))
        if not reason:
            return dropped
        code, _, either = reason.partition(" or ")
        return Expect(volumes=good, reasons=(code,), alternatives=(dropped,) if either else ())

    return write_it


_GEOMETRY = "bad_number|missing_geometry"
for _name, _fault in {
    "pixel_spacing_single": ("PixelSpacing", "1.3", (), _GEOMETRY),
    "pixel_spacing_single_in_one_file": ("PixelSpacing", "1.3", (8,), _GEOMETRY),
    "pixel_spacing_with_comma": ("PixelSpacing", "8,0\\8,7", (), _GEOMETRY),
    "pixel_spacing_of_words": ("PixelSpacing", "wide\\wide", (), _GEOMETRY),
    "position_of_two": ("ImagePositionPatient", "1\\2", (8,), _GEOMETRY),
    "position_not_finite": ("ImagePositionPatient", "nan\\0\\0", (8,), _GEOMETRY),
    "position_infinite": ("ImagePositionPatient", "1\\inf\\3", (), _GEOMETRY),
    "orientation_of_five": ("ImageOrientationPatient", "1\\0\\0\\0\\1", (), _GEOMETRY),
    "orientation_of_words": ("ImageOrientationPatient", "1\\0\\0\\0\\one\\0", (8,), _GEOMETRY),
    "slope_of_words": ("RescaleSlope", "one", (), "bad_number|missing_rescale"),
    "slope_of_two_numbers": ("RescaleSlope", "1\\1", (8,), "bad_number|missing_rescale"),
    "intercept_not_finite": ("RescaleIntercept", "nan", (), "bad_number|missing_rescale"),
    "intercept_with_comma": ("RescaleIntercept", "-1024,0", (), "bad_number|missing_rescale"),
    "number_of_frames_of_two": ("NumberOfFrames", "1\\1", (8,), "bad_number or dropped"),
    "number_of_frames_of_words": ("NumberOfFrames", "one", (), "bad_number or dropped"),
    "kvp_infinite": ("KVP", "1e999", (), ""),
    "kvp_with_comma": ("KVP", "120,0", (), ""),
    "slice_thickness_of_words": ("SliceThickness", "thin", (), ""),
    "slice_thickness_in_one_file": ("SliceThickness", "2,5", (3,), ""),
    "instance_number_of_words": ("InstanceNumber", "IM 1", (), ""),
    "acquisition_number_of_words": ("AcquisitionNumber", "first", (), ""),
    "window_of_words": ("WindowCenter", "lung\\bone", (), ""),
    "age_of_words": ("PatientAge", "old", (), ""),
    "tube_current_huge": ("XRayTubeCurrent", "99999999999", (), ""),
    "images_in_acquisition_of_words": ("ImagesInAcquisition", "many", (), ""),
    "gantry_tilt_of_words": ("GantryDetectorTilt", "none", (), ""),
    "date_of_words": ("StudyDate", "yesterday", (), ""),
}.items():
    member("10", "multi-frame", name=f"number_{_name}", broken=True)(_raw(*_fault))


# -- pixels and rescale


@member("other", "classic")
def slope_of_zero(place: Place) -> Expect:
    return _refused(place, scan(place).put(RescaleSlope=0), "missing_rescale|bad_number")


@member("other", "classic")
def rescale_missing(place: Place) -> Expect:
    return _refused(place, scan(place).put(RescaleSlope=None, RescaleIntercept=None), "missing_rescale")


@member("other", "classic")
def rescale_missing_in_one_slice(place: Place) -> Expect:
    """Left out, it leaves a gap."""
    made = scan(place).put_at([13], RescaleSlope=None)
    save(place, made.slices)
    return Expect(reasons=("missing_rescale",), alternatives=(Expect(reasons=("missing_rescale", "missing_slices")),))


@member("other", "classic")
def series_uid_missing(place: Place) -> Expect:
    return _refused(place, scan(place).put(SeriesInstanceUID=None), "missing_series_uid*")


@member("other", "classic")
def colours(place: Place) -> Expect:
    made = scan(place)
    for data in made.slices:
        put(data, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8)
        put(data, BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=b"\x10" * (26 * 28 * 3))
    return _refused(place, made, "unsupported_pixels")


def _cut_pixels(keep: int, which: tuple[int, ...]) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place)
        for k in which or range(24):
            put(made.slices[k], PixelData=made.slices[k].PixelData[:keep])
        save(place, made.slices)
        return Expect(reasons=("unreadable_pixels",))

    return write_it


member("other", "multi-frame", name="pixels_cut_short")(_cut_pixels(200, (6,)))
member("other", "multi-frame", name="pixels_empty")(_cut_pixels(0, (6,)))
member("other", "multi-frame", name="pixels_cut_short_everywhere")(_cut_pixels(26 * 28, ()))


@member("other", "multi-frame")
def pixels_missing(place: Place) -> Expect:
    return _refused(
        place, scan(place).put_at([6], PixelData=None), "unreadable_pixels|unreadable_file|unsupported_pixels"
    )


@member("other", "multi-frame")
def file_cut_in_the_pixels(place: Place) -> Expect:
    paths = save(place, scan(place).slices)
    paths[9].write_bytes(paths[9].read_bytes()[:-700])
    return Expect(reasons=("unreadable_pixels",), alternatives=(Expect(reasons=("unreadable_file",)),))


@member("other", "multi-frame")
def file_cut_in_the_header(place: Place) -> Expect:
    """The file is no image any more; without it there is a gap."""
    paths = save(place, scan(place).slices)
    paths[9].write_bytes(paths[9].read_bytes()[:420])
    left = ("unreadable_file", "unreadable_file|missing_slices")
    return Expect(
        reasons=left,
        alternatives=(
            Expect(reasons=("unreadable_file",)),
            Expect(reasons=("missing_series_uid", "missing_slices")),
            Expect(reasons=("not_ct", "missing_slices")),
        ),
    )


def _encapsulated(syntax: UID, frame: bytes) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place)
        save(place, made.slices)
        data = made.slices[9]
        data.PixelData = encapsulate([frame])
        data["PixelData"].is_undefined_length = True
        path = next(p for p in place.folder.iterdir() if _instance(p) == data.SOPInstanceUID)
        write(path, data, syntax)
        return Expect(reasons=("unreadable_pixels",))

    return write_it


def _instance(path: Any) -> str:
    import pydicom

    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


for _name, _code in {
    "encoding_jpeg_2000_of_zeros": (JPEG2000Lossless, b"\0" * 500),
    "encoding_rle_of_zeros": (RLELossless, b"\0" * 500),
    "encoding_rle_that_lies": (RLELossless, (2).to_bytes(4, "little") + b"\xff" * 500),
    "encoding_of_a_film": (UID("1.2.840.10008.1.2.4.102"), b"\0\0\0\1" * 100),
    "encoding_unknown": (UID("1.2.3.4.5.6"), b"\0\0\0\1" * 100),
}.items():
    member("other", "multi-frame", name=_name)(_encapsulated(*_code))


# -- whole series that are no volumes


def _no_volume(reason: str, **tags: Any) -> Write:
    def write_it(place: Place) -> Expect:
        return _refused(place, scan(place).put(**tags), f"{reason}*")

    return write_it


for _name, (_reason, _tags) in {
    "series_of_mr": ("not_ct", {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}),
    "series_of_pet": ("not_ct", {"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}),
    "series_of_localizers": ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "series_of_reformats": ("derived_reformat", {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
    "series_of_mips": ("derived_reformat", {"ImageType": ["DERIVED", "PRIMARY", "MIP"]}),
    "series_of_screen_saves": ("secondary_capture", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
}.items():
    member("other", "classic", name=_name)(_no_volume(_reason, **_tags))
