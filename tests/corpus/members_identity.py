"""Series that are more than one CT volume: acquisitions, people, studies, spaces, quantities; odd and repeated images."""

import copy
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from tests.corpus.classic import Scan, put, save, scan, write
from tests.corpus.member import Expect, Place, Write, member


def shifted(made: Scan, share: float) -> Scan:
    """The geometry a share of the slice distance higher along the stack."""
    geometry = made.geometry
    centre = np.asarray(geometry.centre_mm) + share * geometry.matrix[:3, 2]
    return Scan(made.slices, geometry.turned(centre_mm=tuple(centre)), made.hu)


def _later(place: Place, number: int, *, share: float = 0.0, extra_hu: float = 60.5, **tags: Any) -> Scan:
    """The scan of another acquisition: HU higher by a constant, slices `share` of their distance higher."""
    geometry = place.world.geometry
    moved = tuple(np.asarray(geometry.centre_mm) + share * geometry.matrix[:3, 2])
    made = scan(place, geometry=geometry.turned(centre_mm=moved), hu=lambda w: place.world.hu(w) + extra_hu)
    tags = {"AcquisitionNumber": number} | tags
    return made.each(lambda k, d: put(d, SOPInstanceUID=place.uid("image", number, k), **tags))


def interleaved(*scans: Scan) -> list[Dataset]:
    """Slices of several scans in turn."""
    return [data for group in zip(*(made.slices for made in scans), strict=True) for data in group]


# -- kind 1


@member("1", "classic")
def acquisitions_interleaved(place: Place) -> Expect:
    first, second = scan(place), _later(place, 2, share=0.5)
    save(place, interleaved(first, second))
    return Expect(volumes=(first.right(), second.right()))


@member("1", "classic")
def acquisitions_of_constant_hu(place: Place) -> Expect:
    """As the table of cases has it. Without air it is no chest: refused by its values is right as well."""

    def flat(value: float) -> Any:
        return lambda w: np.full(w.shape[:-1], value)

    first = scan(place, hu=flat(100.0))
    geometry = shifted(first, 0.5).geometry
    second = scan(place, geometry=geometry, hu=flat(200.0))
    second.each(lambda k, d: put(d, AcquisitionNumber=2, SOPInstanceUID=place.uid("second", k)))
    save(place, interleaved(first, second))
    return Expect(
        volumes=(first.right(), second.right()),
        alternatives=(Expect(reasons=("several_acquisitions",)), Expect(reasons=("not_hu",))),
    )


@member("1", "classic")
def acquisitions_at_the_same_places(place: Place) -> Expect:
    first, second = scan(place), _later(place, 2)
    save(place, [*first.slices, *second.slices])
    return Expect(volumes=(first.right(), second.right()))


@member("1", "classic")
def acquisitions_three(place: Place) -> Expect:
    scans = [scan(place), _later(place, 2, share=0.3), _later(place, 3, share=0.7, extra_hu=-90)]
    save(place, interleaved(*scans))
    return Expect(volumes=tuple(made.right() for made in scans))


@member("1", "classic")
def acquisition_and_part_of_another(place: Place) -> Expect:
    first, second = scan(place), _later(place, 2, share=0.5)
    save(place, [*first.slices, *second.slices[8:18]])
    return Expect(reasons=("several_acquisitions",))


@member("8", "classic")
def acquisition_and_few_images_of_another(place: Place) -> Expect:
    """At most a fifth of the images, told apart by AcquisitionNumber: left out by name."""
    first, second = scan(place), _later(place, 2, share=0.5)
    save(place, [*first.slices, *second.slices[8:13]])
    return Expect(volumes=(first.right(),), reasons=("several_acquisitions*",))


@member("1", "classic")
def acquisitions_that_overlap(place: Place) -> Expect:
    """Two halves of a chest, three slices of them at the same places with other HU: neither is whole."""
    first, second = scan(place), _later(place, 2)
    save(place, [*first.slices[:14], *second.slices[11:]])
    return Expect(reasons=("several_acquisitions",), alternatives=(Expect(reasons=("duplicate_slices",)),))


@member("1", "classic")
def kernels_at_the_same_places(place: Place) -> Expect:
    first, second = scan(place), _later(place, 1, ConvolutionKernel="B70f")
    second.each(lambda k, d: put(d, SOPInstanceUID=place.uid("hard", k)))
    save(place, [*first.slices, *second.slices])
    return Expect(volumes=(first.right(), second.right()))


@member("1", "classic")
def kernel_and_part_of_another(place: Place) -> Expect:
    first, second = scan(place), _later(place, 1, ConvolutionKernel="B70f")
    second.each(lambda k, d: put(d, SOPInstanceUID=place.uid("hard", k)))
    save(place, [*first.slices, *second.slices[2:9]])
    return Expect(reasons=("several_kernels",))


@member("1", "classic")
def kernel_changes_in_the_middle(place: Place) -> Expect:
    made = scan(place).each(lambda k, d: put(d, ConvolutionKernel="B30f" if k < 12 else "B70f"))
    return _refused(place, made, "several_kernels")


@member("1", "classic")
def phases_without_a_number(place: Place) -> Expect:
    """Two sets at the same places that no tag tells apart."""
    first, second = scan(place), _later(place, 1)
    second.each(lambda k, d: put(d, SOPInstanceUID=place.uid("phase", k)))
    save(place, [*first.slices, *second.slices])
    return Expect(reasons=("duplicate_slices",))


@member("1", "classic")
def phases_by_temporal_position(place: Place) -> Expect:
    """TemporalPositionIdentifier tells the sets apart: two volumes, or a refusal."""
    first = scan(place).put(TemporalPositionIdentifier=1)
    second = _later(place, 1, TemporalPositionIdentifier=2)
    second.each(lambda k, d: put(d, SOPInstanceUID=place.uid("phase", k)))
    save(place, [*first.slices, *second.slices])
    return Expect(
        volumes=(first.right(), second.right()),
        alternatives=(Expect(reasons=("duplicate_slices",)), Expect(reasons=("several_acquisitions",))),
    )


def _alternating(tag: str, one: Any, other: Any) -> Write:
    """Two acquisitions half a step apart, of one AcquisitionNumber, that only this tag tells apart."""

    def write_it(place: Place) -> Expect:
        first, second = scan(place).put(**{tag: one}), _later(place, 1, share=0.5, **{tag: other})
        second.each(lambda k, d: put(d, InstanceNumber=2 * k + 2))
        first.each(lambda k, d: put(d, InstanceNumber=2 * k + 1))
        save(place, interleaved(first, second))
        return Expect(reasons=("several_acquisitions",))

    return write_it


for _tag, _one, _other in (
    ("KVP", 80, 140),
    ("AcquisitionTime", "100000", "103000"),
    ("SeriesDescription", "ARTERIAL", "VENOUS"),
    ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL", "DET_A"], ["ORIGINAL", "PRIMARY", "AXIAL", "DET_B"]),
):
    member("1", "classic", name=f"acquisitions_that_alternate_in_{_tag.lower()}")(_alternating(_tag, _one, _other))


@member("1", "classic")
def acquisitions_with_the_same_instance_numbers(place: Place) -> Expect:
    """Nothing but InstanceNumber, 1 to 24 twice, says that there are two."""
    first, second = scan(place), _later(place, 1, share=0.5)
    second.each(lambda k, d: put(d, SOPInstanceUID=place.uid("second", k)))
    save(place, interleaved(first, second))
    return Expect(reasons=("several_acquisitions",))


@member("1", "classic")
def days_one_after_the_other(place: Place) -> Expect:
    made = scan(place).each(lambda k, d: put(d, AcquisitionDate="20200101" if k < 12 else "20210101"))
    return _refused(place, made, "several_acquisitions")


@member("1", "classic")
def phases_one_after_the_other(place: Place) -> Expect:
    made = scan(place).each(lambda k, d: put(d, TemporalPositionIdentifier=1 + k // 12))
    return _refused(place, made, "several_acquisitions")


@member("1", "classic")
def studies_alternate(place: Place) -> Expect:
    made = scan(place).each(lambda k, d: put(d, StudyInstanceUID=place.uid("study", k % 2)))
    return _refused(place, made, "several_studies")


@member("1", "classic")
def one_slice_of_another_study(place: Place) -> Expect:
    return _refused(place, scan(place).put_at([8], StudyInstanceUID=place.uid("other")), "several_studies")


def _refused(place: Place, made: Scan, *reasons: str, **expect: Any) -> Expect:
    save(place, made.slices)
    return Expect(reasons=reasons, **expect)


# -- kind 2


@member("2", "classic")
def patients_alternate(place: Place) -> Expect:
    return _refused(place, scan(place).each(lambda k, d: put(d, PatientID="AB"[k % 2])), "several_patients")


def _people(tag: str, one: str, other: str) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place).each(lambda k, d: put(d, PatientID="", **{tag: other if k % 2 else one}))
        return _refused(place, made, "several_patients")

    return write_it


for _tag, _one, _other in (
    ("PatientName", "Doe^A", "Doe^B"),
    ("PatientBirthDate", "19500101", "19800101"),
    ("IssuerOfPatientID", "H1", "H2"),
):
    member("2", "classic", name=f"patients_by_{_tag.lower()}")(_people(_tag, _one, _other))


@member("2", "classic")
def one_slice_of_another_patient(place: Place) -> Expect:
    return _refused(place, scan(place).put_at([17], PatientID="SOMEONE ELSE"), "several_patients")


@member("2", "classic")
def patients_in_two_folders(place: Place) -> Expect:
    """Two people whose series were given one UID when they were made anonymous."""
    first = scan(place)
    second = _later(place, 1, share=0.5, PatientID="OTHER")
    second.each(lambda k, d: put(d, SOPInstanceUID=place.uid("other", k)))
    save(place, first.slices, folder="A")
    save(place, second.slices, folder="B")
    return Expect(reasons=("several_patients",))


@member("2", "classic")
def patients_one_after_the_other(place: Place) -> Expect:
    made = scan(place).each(lambda k, d: put(d, PatientID="A" if k < 12 else "B"))
    return _refused(place, made, "several_patients")


@member("2", "classic")
def patient_id_in_some_slices_only(place: Place) -> Expect:
    """One id and no other: one patient is the likely reading, refusing is as safe."""
    made = scan(place).put_at([3, 4, 5], PatientID=None)
    save(place, made.slices)
    return Expect(volumes=(made.right(),), alternatives=(Expect(reasons=("several_patients",)),))


# -- kind 3


@member("3", "classic")
def frame_of_reference_of_one_slice(place: Place) -> Expect:
    made = scan(place).put_at([8], FrameOfReferenceUID=place.uid("elsewhere"))
    return _refused(place, made, "several_frames_of_reference")


@member("3", "classic")
def frames_of_reference_half_and_half(place: Place) -> Expect:
    made = scan(place).put_at(range(12), FrameOfReferenceUID=place.uid("elsewhere"))
    return _refused(place, made, "several_frames_of_reference")


@member("3", "classic")
def frame_of_reference_of_the_last_slice(place: Place) -> Expect:
    made = scan(place)
    return _refused(place, made.put_at([23], FrameOfReferenceUID=place.uid("x")), "several_frames_of_reference")


@member("3", "classic")
def frame_of_reference_missing_in_one_slice(place: Place) -> Expect:
    """Nothing contradicts: committed, or refused for what it lacks."""
    made = scan(place).put_at([8], FrameOfReferenceUID=None)
    save(place, made.slices)
    return Expect(volumes=(made.right(),), alternatives=(Expect(reasons=("several_frames_of_reference",)),))


# -- kind 7


def _quantity(kind: str) -> Write:
    def write_it(place: Place) -> Expect:
        return _refused(place, scan(place).put(RescaleType=kind), "other_quantity")

    return write_it


for _kind in ("Z_EFF", "MGML", "ED", "EDW", "OD", "PCT", "mg/ml"):
    member("7", "classic", name=f"rescale_type_{_kind.lower().replace('/', '_')}")(_quantity(_kind))


def _typed(reason: str, word: str, rescale_type: str | None) -> Write:
    def write_it(place: Place) -> Expect:
        made = scan(place).put(ImageType=["DERIVED", "SECONDARY", "AXIAL", word], RescaleType=rescale_type)
        return _refused(place, made, reason)

    return write_it


for _word, _type, _reason in (
    ("IODINE", "HU", "other_quantity"),
    ("EFF_Z", None, "other_quantity"),
    ("MD", None, "other_quantity"),
    ("SEGMENTATION", "HU", "other_quantity"),
    ("AVERAGE", "HU", "derived_reformat"),
    ("MIN IP", None, "derived_reformat"),
):
    member("7", "classic", name=f"image_type_{_word.lower().replace(' ', '_')}")(_typed(_reason, _word, _type))


@member("7", "plausible")
def unspecified_values_that_are_no_hu(place: Place) -> Expect:
    made = scan(place, slope=1, hu=lambda w: place.world.hu(w) + 1100).put(RescaleType="US")
    return _refused(place, made, "not_hu")


@member("7", "plausible")
def untyped_values_that_are_no_hu(place: Place) -> Expect:
    made = scan(place, hu=lambda w: 0.01 * place.world.hu(w) + 8).put(RescaleType=None)
    return _refused(place, made, "not_hu")


@member("7", "classic")
def quantity_in_one_slice(place: Place) -> Expect:
    """A map of something else at one place of the stack: the rest has a gap."""
    made = scan(place).put_at([11], RescaleType="Z_EFF")
    save(place, made.slices)
    return Expect(reasons=("other_quantity",), alternatives=(Expect(reasons=("other_quantity", "missing_slices")),))


# -- kind 8


def _beside(place: Place, odd: Dataset, reason: str) -> Expect:
    made = scan(place)
    put(odd, SOPInstanceUID=place.uid("odd"), InstanceNumber=99)
    save(place, made.slices)
    write(place.folder / "zz_odd", odd)
    return Expect(volumes=(made.right(),), reasons=(reason,))


@member("8", "classic")
def odd_image_of_bolus_tracking(place: Place) -> Expect:
    """At a place that is taken, with an acquisition number of its own."""
    odd = _later(place, 7).slices[10]
    return _beside(place, odd, "single_image")


@member("8", "classic")
def odd_image_of_monitoring(place: Place) -> Expect:
    odd = put(_later(place, 1).slices[10], ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 MONI"])
    return _beside(place, odd, "single_image")


@member("8", "classic")
def odd_image_turned(place: Place) -> Expect:
    odd = scan(place).slices[10]
    turned = [
        *odd.ImageOrientationPatient[:3],
        *np.cross(odd.ImageOrientationPatient[:3], odd.ImageOrientationPatient[3:]),
    ]
    return _beside(place, put(odd, ImageOrientationPatient=[float(v) for v in turned]), "inconsistent_orientation")


@member("8", "classic")
def odd_image_without_orientation(place: Place) -> Expect:
    return _beside(place, put(scan(place).slices[10], ImageOrientationPatient=None), "missing_geometry")


@member("8", "classic")
def odd_image_without_place(place: Place) -> Expect:
    odd = put(scan(place).slices[10], ImageOrientationPatient=None, ImagePositionPatient=None, PixelSpacing=None)
    return _beside(place, odd, "missing_geometry")


@member("8", "classic")
def odd_image_localizer(place: Place) -> Expect:
    odd = put(scan(place).slices[10], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return _beside(place, odd, "localizer")


@member("8", "classic")
def odd_image_screen_save(place: Place) -> Expect:
    odd = put(
        scan(place).slices[10],
        SOPClassUID="1.2.840.10008.5.1.4.1.1.7",
        ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"],
    )
    return _beside(place, odd, "secondary_capture")


@member("8", "classic")
def odd_image_screen_save_of_ct_class(place: Place) -> Expect:
    """RGB, another matrix, no place: named by what it is, or by what it lacks."""
    odd = put(scan(place).slices[10], ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"], ImageOrientationPatient=None)
    put(odd, ImagePositionPatient=None, Rows=40, Columns=50, SamplesPerPixel=3, PhotometricInterpretation="RGB")
    put(odd, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, PlanarConfiguration=0)
    odd.PixelData = b"\x20" * (40 * 50 * 3)
    return _beside(
        place, odd, "secondary_capture|missing_geometry|unsupported_pixels|inconsistent_shape|derived_reformat"
    )


@member("8", "classic")
def odd_image_mip(place: Place) -> Expect:
    return _beside(place, put(scan(place).slices[10], ImageType=["DERIVED", "SECONDARY", "MIP"]), "derived_reformat")


@member("8", "classic")
def odd_image_dose_page(place: Place) -> Expect:
    odd = put(scan(place).slices[10], ImageType=["ORIGINAL", "SECONDARY", "OTHER", "DOSE_INFO"])
    put(odd, Rows=50, Columns=40, ImageOrientationPatient=None, ImagePositionPatient=None, PixelSpacing=None)
    odd.PixelData = b"\0\0" * 2000
    return _beside(place, odd, "secondary_capture|missing_geometry|inconsistent_shape")


@member("8", "classic")
def odd_image_of_another_matrix(place: Place) -> Expect:
    odd = put(scan(place).slices[10], Rows=13, ImagePositionPatient=[float(v) for v in _beyond(place)])
    odd.PixelData = odd.PixelData[: 13 * odd.Columns * 2]
    return _beside(place, odd, "inconsistent_shape")


def _beyond(place: Place) -> Any:
    """A place six slices beyond the last."""
    geometry = place.world.geometry
    return (geometry.matrix @ (0, 0, geometry.shape[0] + 5, 1))[:3].round(6)


@member("8", "classic")
def stacks_of_two_orientations(place: Place) -> Expect:
    """Each is whole: two volumes, or a refusal that names the orientation."""
    first = scan(place)
    geometry = place.world.whole.turned(
        row=(1.0, 0.0, 0.0),
        column=(0.0, 0.0, -1.0),
        shape=(27, 26, 28),
        centre_mm=place.world.geometry.centre_mm,
        whole=False,
    )
    second = scan(place, geometry=geometry)
    second.each(lambda k, d: put(d, SOPInstanceUID=place.uid("coronal", k)))
    save(place, [*first.slices, *second.slices])
    return Expect(
        volumes=(first.right(), second.right()), alternatives=(Expect(reasons=("inconsistent_orientation",)),)
    )


# -- kind 9


@member("9", "classic", broken=False)
def slice_exported_twice(place: Place) -> Expect:
    made = scan(place)
    again = put(copy.deepcopy(made.slices[10]), SOPInstanceUID=place.uid("again"))
    save(place, [*made.slices, again])
    return Expect(volumes=(made.right(num_duplicates=1),))


@member("9", "classic", broken=False)
def every_slice_exported_twice(place: Place) -> Expect:
    made = scan(place)
    again = [put(copy.deepcopy(d), SOPInstanceUID=place.uid("again", k)) for k, d in enumerate(made.slices)]
    save(place, [*made.slices, *again])
    return Expect(volumes=(made.right(num_duplicates=24),))


@member("9", "classic", broken=False)
def files_copied_beside(place: Place) -> Expect:
    made = scan(place)
    paths = save(place, made.slices)
    for path in paths[:5]:
        (place.folder / "copies").mkdir(exist_ok=True)
        (place.folder / "copies" / path.name).write_bytes(path.read_bytes())
    return Expect(volumes=(made.right(num_duplicates=5),))


@member("9", "classic", broken=False)
def slice_sent_again_with_another_header(place: Place) -> Expect:
    """The same SOP instance, pixels and place; a date of transfer differs."""
    made = scan(place)
    again = put(copy.deepcopy(made.slices[4]), InstanceCreationDate="20210202")
    save(place, [*made.slices, again])
    return Expect(volumes=(made.right(num_duplicates=1),))


@member("9", "classic")
def slice_at_a_place_that_is_taken(place: Place) -> Expect:
    made = scan(place)
    other = put(copy.deepcopy(made.slices[4]), SOPInstanceUID=place.uid("other"), PixelData=made.slices[5].PixelData)
    save(place, [*made.slices, other])
    return Expect(reasons=("duplicate_slices",))


@member("9", "classic")
def slice_one_hu_off_at_a_place_that_is_taken(place: Place) -> Expect:
    made = scan(place)
    other = copy.deepcopy(made.slices[4])
    pixels = np.frombuffer(other.PixelData, "<i2").copy()
    pixels[300] += 16
    save(place, [*made.slices, put(other, SOPInstanceUID=place.uid("other"), PixelData=pixels.tobytes())])
    return Expect(reasons=("duplicate_slices",))


# -- kind 20


@member("20", "classic")
def one_uid_per_slice(place: Place) -> Expect:
    made = scan(place).each(lambda k, d: put(d, SeriesInstanceUID=place.uid("series", k)))
    return _refused(place, made, "one_series_per_slice*")


@member("20", "classic")
def one_uid_per_slice_over_folders(place: Place) -> Expect:
    made = scan(place).each(lambda k, d: put(d, SeriesInstanceUID=place.uid("series", k)))
    for k, data in enumerate(made.slices):
        write(place.folder / f"S{k}" / "1.dcm", data)
    return Expect(reasons=("one_series_per_slice*",))


@member("20", "classic")
def one_uid_per_slice_beside_a_good_series(place: Place) -> Expect:
    good = scan(place)
    made = scan(place, series=2).each(lambda k, d: put(d, SeriesInstanceUID=place.uid("series2", k)))
    save(place, good.slices, folder="good")
    save(place, made.slices, folder="split")
    return Expect(volumes=(good.right(),), reasons=("one_series_per_slice*",))
