"""Series whose slices lie wrong, or oddly but well: rounding, jitter, gaps, changes of distance, extents, missing ends."""

from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from tests.corpus.classic import Scan, put, save, scan, write
from tests.corpus.member import Expect, Place, Write, member
from tests.corpus.members_identity import _refused
from tests.corpus.members_valid import one
from tests.corpus.world import Array, Geometry, rotated

_NO_FETCHING = r"(?i)^(?!.*fetch the missing).*$"
_UNEVEN = "(?i)uneven|position|jitter|distance|rounded|rounding"


def placed(place: Place, shares: Array, geometry: Geometry | None = None, **how: Any) -> Scan:
    """A scan whose slices lie at multiples of the slice step from the first."""
    geometry = geometry or place.world.geometry
    shares = np.asarray(shares, dtype=float)
    middle = (shares - shares.mean())[:, None] * geometry.matrix[:3, 2]
    centre = geometry.positions.mean(axis=0)
    return scan(
        place, geometry=geometry.turned(shape=(len(shares), *geometry.shape[1:])), positions=centre + middle, **how
    )


# -- kind 11


@member("11", "classic", broken=False)
def positions_with_one_decimal(place: Place) -> Expect:
    """0.75 mm apart: rounding moves slices by up to 7 % of the distance."""
    geometry = place.world.whole.turned(spacing_mm=(8.0, 8.0, 0.75), shape=(210, 26, 28), whole=False)
    made = scan(place, geometry=geometry, decimals=1)
    return one(place, made)


@member("11", "classic", broken=False)
def positions_with_one_decimal_oblique(place: Place) -> Expect:
    geometry = Geometry(
        **rotated(6.0, -11.0),
        spacing_mm=(8.0, 8.7, 1.25),
        shape=(130, 26, 28),
        centre_mm=place.world.geometry.centre_mm,
    )
    made = scan(place, geometry=geometry, decimals=1)
    return one(place, made)


@member("11", "classic", broken=False)
def positions_in_whole_millimetres(place: Place) -> Expect:
    """7.25 mm apart: half a unit is 7 % of the distance. Honoured or averaged, HU differ by up to 0.75."""
    geometry = place.world.whole.turned(spacing_mm=(8.0, 8.0, 7.25), shape=(24, 26, 28), whole=False)
    made = scan(place, geometry=geometry, decimals=0)
    made.truth |= {"inside": 1.9, "faces": 6.0}
    return one(place, made)


@member("11", "classic", broken=False)
def positions_in_whole_millimetres_of_a_fine_step(place: Place) -> Expect:
    """1.25 mm apart: half a unit is 40 % of the distance. HU are right to what half a millimetre is."""
    geometry = place.world.whole.turned(spacing_mm=(8.0, 8.0, 1.25), shape=(130, 26, 28), whole=False)
    made = scan(place, geometry=geometry, decimals=0)
    made.truth |= {"inside": 1.9, "faces": 6.0}
    return one(place, made)


@member("11", "classic", broken=False)
def cosines_that_differ_by_a_thousandth(place: Place) -> Expect:
    """Exactly 0.001 between slices, as rounding to three decimals gives."""

    def turn(k: int, data: Dataset) -> None:
        cosines = [float(v) for v in data.ImageOrientationPatient]
        cosines[1 if abs(cosines[0]) > 0.5 else 0] += 0.001 * (k % 2)
        data.ImageOrientationPatient = [round(v, 6) for v in cosines]

    made = scan(place).each(turn)
    made.truth |= {"inside": 1.3, "faces": 5.5}  # half a thousandth over the width of a chest
    return one(place, made)


@member("11", "classic", broken=False)
def cosines_with_three_decimals(place: Place) -> Expect:
    """A turned scan whose unit vectors are off by rounding."""
    geometry = Geometry(**rotated(5.0, 8.0), spacing_mm=(8.0, 8.7, 7.1), centre_mm=place.world.geometry.centre_mm)
    made = scan(place, geometry=geometry)
    made.each(lambda _, d: put(d, ImageOrientationPatient=[round(float(v), 3) for v in d.ImageOrientationPatient]))
    made.truth |= {"inside": 1.3, "faces": 5.5}
    return one(place, made)


def _jitter(share: float) -> Write:
    def write_it(place: Place) -> Expect:
        chance = place.world.rng(place.name)
        shares = np.arange(24) + chance.uniform(-share, share, 24)
        shares[[0, -1]] = 0, 23
        return one(place, placed(place, shares), notes=(_UNEVEN,))

    return write_it


for _percent in (4, 9):
    member("11", "classic", name=f"jitter_of_{_percent}_percent", broken=False)(_jitter(_percent / 100))


@member("11", "classic", broken=False)
def one_slice_nine_percent_off(place: Place) -> Expect:
    shares = np.arange(24.0)
    shares[9] += 0.09
    return one(place, placed(place, shares), notes=(_UNEVEN,))


@member("11", "classic")
def jitter_of_thirty_percent(place: Place) -> Expect:
    """Alternately closer and farther; no gap."""
    made = placed(place, np.arange(24) + 0.15 * (np.arange(24) % 2 * 2 - 1))
    return _refused(place, made, "inconsistent_spacing", detail=_NO_FETCHING)


@member("11", "classic")
def slices_off_the_line(place: Place) -> Expect:
    made = scan(place)
    sideways = np.asarray(made.geometry.row) * 6.0
    for k in (7, 15):
        place_of = np.asarray([float(v) for v in made.slices[k].ImagePositionPatient]) + sideways
        put(made.slices[k], ImagePositionPatient=[round(float(v), 6) for v in place_of])
    return _refused(place, made, "inconsistent_position")


# -- kind 12


def _distances(*steps: tuple[int, float]) -> Array:
    """Places of slices, as multiples of a step: pairs of (how many, how far each)."""
    return np.concatenate([[0.0], np.cumsum(np.concatenate([np.full(count, far) for count, far in steps]))])


def _changing(*steps: tuple[int, float]) -> Write:
    def write_it(place: Place) -> Expect:
        geometry = place.world.geometry.turned(spacing_mm=(*place.world.geometry.spacing_mm[:2], 1.0))
        made = placed(place, _distances(*steps), geometry)
        return _refused(place, made, "inconsistent_spacing", detail=_NO_FETCHING)

    return write_it


for _name, _steps in {
    "distance_doubles": ((14, 4.0), (14, 8.0)),
    "distance_halves": ((13, 9.0), (14, 4.5)),
    "distance_three_to_six_mm": ((20, 3.0), (20, 6.0)),
    "distance_of_lung_differs": ((8, 8.0), (16, 5.0), (8, 8.0)),
    "distance_grows": tuple((2, 4.0 + 0.4 * n) for n in range(14)),
    "distance_a_third_more": ((13, 6.0), (13, 8.0)),
}.items():
    member("12", "classic", name=_name)(_changing(*_steps))


# -- gaps


def _without(*missing: int) -> Write:
    def write_it(place: Place) -> Expect:
        geometry = place.world.geometry.turned(shape=(30, *place.world.geometry.shape[1:]))
        made = scan(place, geometry=geometry)
        save(place, [data for k, data in enumerate(made.slices) if k not in missing])
        return Expect(reasons=("missing_slices",))

    return write_it


for _name, _missing in {
    "gap_of_one": (11,),
    "gap_of_three": (11, 12, 13),
    "gaps_two": (6, 19, 20),
    "gap_before_the_last": (28,),
    "gap_after_the_first": (1,),
}.items():
    member("other", "classic", name=_name)(_without(*_missing))


# -- kind 13


@member("13", "classic")
def tail_missing_of_images_in_acquisition(place: Place) -> Expect:
    made = scan(place, geometry=place.world.geometry.turned(shape=(30, 26, 28))).put(ImagesInAcquisition=30)
    save(place, made.slices[:25])
    return Expect(reasons=("incomplete",))


@member("13", "classic")
def head_missing_of_images_in_acquisition(place: Place) -> Expect:
    made = scan(place, geometry=place.world.geometry.turned(shape=(30, 26, 28))).put(ImagesInAcquisition=30)
    save(place, made.slices[4:])
    return Expect(reasons=("incomplete",))


@member("13", "classic", broken=False)
def images_in_acquisition_met(place: Place) -> Expect:
    made = scan(place).put(ImagesInAcquisition=24)
    made.truth["completeness"] = "complete"
    return one(place, made)


@member("13", "classic", broken=False)
def no_count_of_images(place: Place) -> Expect:
    made = scan(place)
    made.truth["completeness"] = "unknown"
    return one(place, made)


@member("13", "classic", broken=False)
def images_in_acquisition_fewer_than_there_are(place: Place) -> Expect:
    made = scan(place).put(ImagesInAcquisition=10)
    made.truth["completeness"] = "unknown"
    return one(place, made)


@member("13", "classic", broken=False)
def images_in_acquisition_of_two_series(place: Place) -> Expect:
    """One acquisition, reconstructed twice, counts the images of both: it does not say how many this series has."""
    first = scan(place).put(ImagesInAcquisition=48)
    second = scan(place, series=2, hu=lambda w: place.world.hu(w) - 50, first=25).put(ImagesInAcquisition=48)
    save(place, first.slices, folder="a")
    save(place, second.put(ConvolutionKernel="B70f").slices, folder="b")
    return Expect(volumes=(first.right(), second.right()))


@member("13", "classic", broken=False)
def images_in_acquisition_of_thin_and_thick_slices(place: Place) -> Expect:
    """The thin reconstruction has most images of the acquisition, and all it ever had."""
    thin = scan(place).put(ImagesInAcquisition=30)
    x, y, z = place.world.geometry.spacing_mm
    coarse = place.world.geometry.turned(spacing_mm=(x, y, 4 * z), shape=(6, 26, 28))
    thick = scan(place, series=2, geometry=coarse).put(ImagesInAcquisition=30)
    thin.truth["completeness"] = "unknown"
    save(place, thin.slices, folder="thin")
    save(place, thick.slices, folder="thick")
    return Expect(volumes=(thin.right(),), reasons=("too_few_slices",))


@member("13", "classic", broken=False)
def images_in_acquisition_with_its_scouts(place: Place) -> Expect:
    made = scan(place).put(ImagesInAcquisition=26)
    made.truth["completeness"] = "unknown"
    save(place, made.slices)
    _scouts(place)
    return Expect(volumes=(made.right(),), reasons=("localizer",))


@member("13", "classic")
def tail_missing_of_more_images_than_there_are_scouts(place: Place) -> Expect:
    save(place, scan(place).put(ImagesInAcquisition=27).slices)
    _scouts(place)
    return Expect(reasons=("incomplete", "localizer"))


def _scouts(place: Place) -> None:
    for k in range(2):
        scout = put(scan(place, series=7).slices[k], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        write(place.folder / "scouts" / f"{k}.dcm", scout)


def manifest(place: Place, count: int, name: str, text: str) -> None:
    """A manifest in the root of the source, with a number of images of the member's series."""
    series, study = place.uid("series", 1), place.uid("study")
    (place.folder.parent / name).write_text(text.format(series=series, study=study, count=count), encoding="utf-8")


NBIA = (
    "Series UID,Collection,3rd Party Analysis,Data Description URI,Subject ID,Study UID,Study Description,Study Date,Series "
    "Description,Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,File Size,File Location,Download Timestamp\n"
    "{series},LIDC-IDRI,,,LIDC-IDRI-0001,{study},,01-01-2000,,ACME,CT,CT Image Storage,1.2.840.10008.5.1.4.1.1.2,{count},1 MB,"
    ".\\LIDC,2024-01-01\n"
)


@member("13", "listing", alone=True)
def tail_missing_of_a_manifest(place: Place) -> Expect:
    """`metadata.csv` as the NBIA Data Retriever writes it beside the folders."""
    made = scan(place, geometry=place.world.geometry.turned(shape=(30, 26, 28)))
    save(place, made.slices[:25])
    manifest(place, 30, "metadata.csv", NBIA)
    return Expect(reasons=("incomplete", "unknown_format?"))


@member("13", "listing", alone=True, broken=False)
def manifest_met(place: Place) -> Expect:
    made = scan(place)
    made.truth["completeness"] = "complete"
    save(place, made.slices)
    manifest(place, 24, "metadata.csv", NBIA)
    return Expect(volumes=(made.right(),), reasons=("unknown_format?",))


# -- kind 21, and extents


def _extent(reason: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Write:
    def write_it(place: Place) -> Expect:
        geometry = place.world.geometry.turned(shape=shape, spacing_mm=spacing)
        return _refused(place, scan(place, geometry=geometry), reason)

    return write_it


for _name, _what in {
    "slab_of_8_mm": ("too_short", (24, 26, 28), (8.0, 8.7, 0.33)),
    "slab_of_12_cm": ("too_short", (24, 26, 28), (8.0, 8.7, 5.0)),
    "field_of_view_of_12_cm": ("too_narrow", (24, 26, 28), (4.3, 4.6, 7.1)),
    "field_of_view_narrow_one_way": ("too_narrow", (24, 26, 28), (8.0, 5.0, 7.1)),
    "slices_12_mm_apart": ("thick_slices", (24, 26, 28), (8.0, 8.7, 12.0)),
    "twelve_slices": ("too_few_slices", (12, 26, 28), (8.0, 8.7, 9.5)),
}.items():
    member("21", "plausible", name=_name)(_extent(*_what))


@member("21", "plausible")
def a_single_slice(place: Place) -> Expect:
    save(place, scan(place).slices[:1])
    return Expect(reasons=("too_few_slices",))


@member("21", "plausible", broken=False)
def slab_that_the_limits_allow(place: Place) -> Expect:
    made = scan(place, geometry=place.world.geometry.turned(spacing_mm=(8.0, 8.7, 5.0)))
    return one(place, made, config={"min_length_mm": 100.0})


def _body_part(name: str) -> Write:
    def write_it(place: Place) -> Expect:
        return _refused(place, scan(place).put(BodyPartExamined=name), "other_body_part")

    return write_it


for _part in ("HEAD", "Brain", "KNEE "):
    member("21", "plausible", name=f"body_part_{_part.strip().lower()}")(_body_part(_part))


@member("21", "plausible", broken=False)
def body_part_that_the_policy_allows(place: Place) -> Expect:
    return one(place, scan(place).put(BodyPartExamined="HEAD"), config={"excluded_body_parts": ("KNEE",)})


@member("21", "plausible", broken=False)
def body_part_of_more_than_a_chest(place: Place) -> Expect:
    return one(place, scan(place).put(BodyPartExamined="CHESTABDPELVIS"))


# -- geometry that cannot be


@member("other", "classic")
def rows_not_orthogonal_to_columns(place: Place) -> Expect:
    made = scan(place)
    made.put(ImageOrientationPatient=[1.0, 0.0, 0.0, 0.3, 0.953939, 0.0])
    return _refused(place, made, "missing_geometry|inconsistent_orientation|bad_number")


@member("other", "classic")
def cosines_twice_as_long(place: Place) -> Expect:
    made = scan(place)
    made.each(lambda _, d: put(d, ImageOrientationPatient=[2 * float(v) for v in d.ImageOrientationPatient]))
    return _refused(place, made, "missing_geometry|bad_number")


@member("other", "classic")
def cosines_of_zero(place: Place) -> Expect:
    return _refused(place, scan(place).put(ImageOrientationPatient=[0.0] * 6), "missing_geometry|bad_number")


@member("other", "classic")
def pixel_spacing_of_zero(place: Place) -> Expect:
    return _refused(place, scan(place).put(PixelSpacing=[0.0, 0.0]), "missing_geometry|bad_number")


@member("other", "classic")
def pixel_spacing_negative(place: Place) -> Expect:
    return _refused(place, scan(place).put(PixelSpacing=[-8.0, 8.0]), "missing_geometry|bad_number")


@member("other", "classic")
def pixel_spacing_differs_from_the_middle_on(place: Place) -> Expect:
    made = scan(place)
    made.put_at(range(12, 24), PixelSpacing=[7.0, 7.0])
    return _refused(place, made, "inconsistent_spacing")


@member("other", "classic")
def pixel_spacing_of_the_last_slices_is_no_pair(place: Place) -> Expect:
    """The others are even without them, and yet not the whole scan."""
    made = scan(place, geometry=place.world.geometry.turned(shape=(30, 26, 28)))
    return _refused(place, made.put_at(range(25, 30), PixelSpacing="1.3"), "bad_number|missing_geometry")


@member("other", "classic")
def orientation_of_the_last_slices_differs(place: Place) -> Expect:
    made = scan(place, geometry=place.world.geometry.turned(shape=(30, 26, 28)))
    turned = scan(place, geometry=place.world.geometry.turned(**rotated(14.0, 3.0)))
    other = turned.slices[0].ImageOrientationPatient
    return _refused(place, made.put_at(range(25, 30), ImageOrientationPatient=other), "inconsistent_orientation")


@member("other", "classic")
def orientation_differs_from_the_middle_on(place: Place) -> Expect:
    made = scan(place)
    turned = scan(place, geometry=place.world.geometry.turned(**rotated(14.0, 3.0)))
    for k in range(12, 24):
        made.slices[k].ImageOrientationPatient = turned.slices[k].ImageOrientationPatient
    return _refused(place, made, "inconsistent_orientation")


@member("other", "classic")
def matrix_differs_from_the_middle_on(place: Place) -> Expect:
    made = scan(place)
    for data in made.slices[12:]:
        put(data, Rows=13, PixelData=data.PixelData[: 13 * data.Columns * 2])
    return _refused(place, made, "inconsistent_shape")


@member("other", "classic")
def orientation_missing_everywhere(place: Place) -> Expect:
    return _refused(place, scan(place).put(ImageOrientationPatient=None), "missing_geometry")


@member("other", "classic")
def position_missing_in_the_middle(place: Place) -> Expect:
    """Left out, it leaves a gap."""
    made = scan(place).put_at([9], ImagePositionPatient=None)
    save(place, made.slices)
    return Expect(reasons=("missing_geometry",), alternatives=(Expect(reasons=("missing_geometry", "missing_slices")),))


@member("other", "classic")
def all_slices_at_one_place(place: Place) -> Expect:
    made = scan(place)
    first = made.slices[0].ImagePositionPatient
    return _refused(place, made.put(ImagePositionPatient=first), "duplicate_slices|missing_geometry")


@member("other", "classic")
def positions_a_kilometre_apart(place: Place) -> Expect:
    geometry = place.world.geometry.turned(spacing_mm=(8.0, 8.7, 50000.0))
    return _refused(place, scan(place, geometry=geometry, hu=lambda w: 0 * w[..., 0] - 700), "thick_slices|too_large")
