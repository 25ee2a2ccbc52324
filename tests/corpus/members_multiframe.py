"""Multi-frame CT, enhanced and converted from single images (kind 17): good ones, and faults of single frames."""

import copy
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from tests.corpus.classic import Scan, put, scan, write
from tests.corpus.member import Expect, Place, Write, member
from tests.corpus.members_identity import _later
from tests.corpus.members_valid import _LARGE, outside_circle
from tests.corpus.members_values import beside
from tests.corpus.multiframe import LEGACY, multiframe


def _one(place: Place, made: Scan, data: Dataset, syntax: UID = ExplicitVRLittleEndian) -> Expect:
    write(place.folder / "image", data, syntax)
    return Expect(volumes=(made.right(),))


def _plain(**how: Any) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place)
        return _one(place, made, multiframe(place, made.slices, **how))

    return write_it


for _name, _how in {
    "enhanced": {},
    "enhanced_all_groups_per_frame": {"per_frame": ("orientation", "measures", "rescale")},
    "legacy_converted": {"sop": LEGACY, "per_frame": ("orientation", "measures", "rescale")},
    "legacy_converted_shared": {"sop": LEGACY},
}.items():
    member("17", "multi-frame", name=_name, broken=False)(_plain(**_how))


@member("17", "multi-frame", broken=False)
def enhanced_frames_out_of_order(place: Place) -> Expect:
    made = scan(place)
    order = place.world.rng("order").permutation(24)
    return _one(place, made, multiframe(place, [made.slices[k] for k in order]))


@member("17", "multi-frame", broken=False)
def enhanced_frames_reversed(place: Place) -> Expect:
    made = scan(place, slope=1)
    return _one(place, made, multiframe(place, made.slices[::-1]))


@member("17", "multi-frame", broken=False)
def enhanced_rescale_per_frame(place: Place) -> Expect:
    made = scan(place)

    def rescale(k: int, data: Dataset) -> None:
        hu = np.frombuffer(data.PixelData, "<i2") / 16 - 1024
        slope, intercept = round(0.05 + 0.001 * k, 4), -1000.0 - 3.5 * k
        put(data, RescaleSlope=slope, RescaleIntercept=intercept)
        data.PixelData = np.rint((hu - intercept) / slope).astype("<i2").tobytes()

    return _one(place, made.each(rescale), multiframe(place, made.slices, per_frame=("rescale",)))


@member("17", "multi-frame", broken=False)
def enhanced_tilted(place: Place) -> Expect:
    geometry = place.world.whole.turned(spacing_mm=(8.0, 8.7, 7.1), step=(0.0, 1.5, 7.0), whole=False)
    if place.world.seed:
        geometry = geometry.turned(row=(1.0, 0.0, 0.0), column=(0.0, 1.0, 0.0))
    made = scan(place, geometry=geometry)
    return _one(place, made, multiframe(place, made.slices))


@member("17", "multi-frame", broken=False)
def enhanced_padding_declared(place: Place) -> Expect:
    made = scan(place, slope=1, fill=outside_circle, fill_stored=-2000)
    data = multiframe(place, made.slices)
    data.add_new("PixelPaddingValue", "SS", -2000)
    return _one(place, made, data)


def _encoded(syntax: UID) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place, slope=1, signed=False, geometry=place.world.whole.turned(shape=_LARGE))
        return _one(place, made, multiframe(place, made.slices), syntax)

    return write_it


for _name, _syntax in {"implicit": ImplicitVRLittleEndian, "rle": RLELossless, "jpeg_2000": JPEG2000Lossless}.items():
    member("17", "multi-frame", name=f"enhanced_{_name}", broken=False)(_encoded(_syntax))


@member("17", "multi-frame", broken=False)
def enhanced_in_two_files(place: Place) -> Expect:
    made = scan(place)
    write(place.folder / "a", multiframe(place, made.slices[12:], number=1))
    write(place.folder / "b", multiframe(place, made.slices[:12], number=2))
    return Expect(volumes=(made.right(),))


@member("17", "multi-frame", broken=False)
def enhanced_two_stacks(place: Place) -> Expect:
    """Two stacks of one image at the same places, each whole: told apart by StackID alone."""
    first, second = scan(place), _later(place, 1)
    frames = [*first.slices, *second.slices]
    write(place.folder / "image", multiframe(place, frames, stacks=["1"] * 24 + ["2"] * 24))
    return Expect(volumes=(first.right(), second.right()))


@member("17", "multi-frame", broken=False)
def enhanced_two_stacks_interleaved(place: Place) -> Expect:
    first, second = scan(place), _later(place, 1, share=0.5)
    frames = [one for pair in zip(first.slices, second.slices, strict=True) for one in pair]
    write(place.folder / "image", multiframe(place, frames, stacks=["A", "B"] * 24))
    return Expect(volumes=(first.right(), second.right()))


@member("17", "multi-frame", broken=False)
def enhanced_two_acquisitions(place: Place) -> Expect:
    first, second = scan(place), _later(place, 2)
    write(place.folder / "image", multiframe(place, [*first.slices, *second.slices]))
    return Expect(volumes=(first.right(), second.right()))


@member("17", "multi-frame", broken=False)
def enhanced_frame_twice(place: Place) -> Expect:
    made = scan(place)
    write(place.folder / "image", multiframe(place, [*made.slices, copy.deepcopy(made.slices[7])]))
    return Expect(volumes=(made.right(num_duplicates=1),))


@member("17", "multi-frame", broken=False)
def enhanced_file_twice(place: Place) -> Expect:
    """A copy under the same SOP instance: however repeats are counted, by file or by frame."""
    made = scan(place)
    write(place.folder / "a", multiframe(place, made.slices))
    (place.folder / "b").write_bytes((place.folder / "a").read_bytes())
    return Expect(
        volumes=(made.right(num_duplicates=1),), alternatives=(Expect(volumes=(made.right(num_duplicates=24),)),)
    )


@member("17", "multi-frame", broken=False)
def enhanced_single_frames(place: Place) -> Expect:
    """The multi-frame class with one frame per file."""
    made = scan(place)
    for k, one in enumerate(made.slices):
        write(place.folder / f"{k}", multiframe(place, [one], number=k + 1))
    return Expect(volumes=(made.right(),))


def _broken(reason: str, change: Any, *, frames: int = 24, missing: tuple[int, ...] = ()) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place, geometry=place.world.geometry.turned(shape=(frames, 26, 28)))
        data = multiframe(place, [one for k, one in enumerate(made.slices) if k not in missing])
        change(data)
        write(place.folder / "image", data)
        return Expect(volumes=beside(place), reasons=(reason,))

    return write_it


def _frame(data: Dataset, k: int) -> Dataset:
    return data.PerFrameFunctionalGroupsSequence[k]


def _shared(data: Dataset) -> Dataset:
    return data.SharedFunctionalGroupsSequence[0]


_PLACE = "missing_geometry|bad_number"
for _name, (_reason, _change, _more) in {
    "gap": ("missing_slices", lambda d: None, {"frames": 30, "missing": (11, 12)}),
    "few_frames": ("too_few_slices", lambda d: None, {"frames": 9}),
    "slab": ("too_short", lambda d: None, {"frames": 18}),
    "frame_without_place": (_PLACE, lambda d: put(_frame(d, 5), PlanePositionSequence=None), {}),
    "without_orientation": (_PLACE, lambda d: put(_shared(d), PlaneOrientationSequence=None), {}),
    "without_measures": (_PLACE, lambda d: put(_shared(d), PixelMeasuresSequence=None), {}),
    "without_groups": (
        f"{_PLACE}|missing_rescale",
        lambda d: put(d, PerFrameFunctionalGroupsSequence=None, SharedFunctionalGroupsSequence=None),
        {},
    ),
    "without_rescale": ("missing_rescale", lambda d: put(_shared(d), PixelValueTransformationSequence=None), {}),
    "of_another_quantity": (
        "other_quantity",
        lambda d: put(_shared(d).PixelValueTransformationSequence[0], RescaleType="Z_EFF"),
        {},
    ),
    "more_frames_than_groups": (
        f"{_PLACE}|unreadable_pixels",
        lambda d: put(d, NumberOfFrames=40),
        {},
    ),
    "pixels_cut_short": ("unreadable_pixels", lambda d: put(d, PixelData=d.PixelData[:9000]), {}),
    "localizer": ("localizer", lambda d: put(d, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]), {}),
    "mip": ("derived_reformat", lambda d: put(d, ImageType=["DERIVED", "PRIMARY", "VOLUME", "MIP"]), {}),
    "frames_at_one_place": (
        "duplicate_slices",
        lambda d: put(_frame(d, 6).PlanePositionSequence[0],
                      ImagePositionPatient=_frame(d, 5).PlanePositionSequence[0].ImagePositionPatient),
        {},
    ),
    "head": ("other_body_part", lambda d: put(d, BodyPartExamined="HEAD"), {}),
}.items():  # fmt: skip
    member("17", "multi-frame", name=f"enhanced_{_name}")(_broken(_reason, _change, **_more))


@member("17", "multi-frame")
def enhanced_stack_and_part_of_another(place: Place) -> Expect:
    """One is whole, of the other there are five frames: which of the codes names it is open, that it is refused is not."""
    first, second = scan(place), _later(place, 1)
    frames = [*first.slices, *second.slices[:5]]
    write(place.folder / "image", multiframe(place, frames, stacks=["1"] * 24 + ["2"] * 5))
    return Expect(reasons=("several_acquisitions|several_stacks|duplicate_slices",))


@member("17", "multi-frame")
def enhanced_of_two_orientations(place: Place) -> Expect:
    """Half the frames turned: a refusal that names the orientation."""
    made = scan(place)
    data = multiframe(place, made.slices, per_frame=("orientation",))
    for k in range(12, 24):
        place_of = data.PerFrameFunctionalGroupsSequence[k].PlaneOrientationSequence[0]
        cosines = [float(v) for v in place_of.ImageOrientationPatient]
        place_of.ImageOrientationPatient = [*cosines[3:], *(-v for v in cosines[:3])]
    write(place.folder / "image", data)
    return Expect(reasons=("inconsistent_orientation",))
