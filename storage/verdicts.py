"""Reason codes of exclusions: one table from code to verdict and sentence.

*skipped* means not a CT volume (nothing is wrong with the file); *quarantined* means a CT series that is broken or incomplete. A
sentence says what, where and what to do, and never contains a patient attribute.
"""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["skipped", "quarantined"]


@dataclass(frozen=True)
class Reason:
    """One row: which verdict a code belongs to, its sentence template, and whether it may change though the source does not."""

    verdict: Verdict
    sentence: str
    transient: bool = False


REASONS: dict[str, Reason] = {
    # -- skipped: not a CT volume
    "unknown_format": Reason(
        "skipped",
        "{where} is in no format that is read (DICOM, NIfTI, NRRD, MetaImage, npz of RAD-ChestCT); nothing to do.",
    ),
    "archive": Reason(
        "skipped",
        "{where} is an archive ({detail}) that was not opened: unpack it. Zip and tar are read where ingest.archives is true.",
    ),
    "image_pair": Reason(
        "skipped",
        "{where} is the header of an image in two files (.hdr and .img), which is not read: convert it to one NIfTI file.",
    ),
    "not_regular_file": Reason("skipped", "{where} is {detail}, not a regular file: it was not opened."),
    "outside_source": Reason(
        "skipped",
        "{where} leads out of the source ({detail}): it was not opened. Copy what it means into the source.",
    ),
    "dicomdir": Reason("skipped", "{where} is a DICOM directory file; the images it lists are read directly."),
    "not_ct": Reason("skipped", "{where} is {detail}, not a CT image; nothing to do."),
    "localizer": Reason("skipped", "{where} is a localizer (scout), not a volume; nothing to do."),
    "single_image": Reason(
        "skipped", "{where} is {detail}, such as scanners take to time a contrast agent, not a slice; nothing to do."
    ),
    "secondary_capture": Reason("skipped", "{where} is a secondary capture page, not a volume; nothing to do."),
    "derived_reformat": Reason(
        "skipped", "{where} is derived from another series ({detail}); ingest the original axial series instead."
    ),
    "multi_frame": Reason(
        "skipped",
        "{where} is a multi-frame image of an old kind ({detail}): export it as Enhanced CT or as single images.",
    ),
    "other_quantity": Reason(
        "skipped", "{where} holds {detail}, not HU: nothing to do, or export the images in HU of the same scan."
    ),
    "other_body_part": Reason(
        "skipped",
        "{where} is of body part {detail}: nothing to do, or change ingest.excluded_body_parts if it shows a chest.",
    ),
    "not_hu": Reason(
        "skipped",
        "{where} has values that are not the HU of a chest ({detail}): nothing to do if it is a mask, a windowed or another "
        "kind of image; a CT that lost its scaling to HU has to be exported again.",
    ),
    "shorter_copy": Reason("skipped", "{where} has {detail}: the longer copy of the scan stays; nothing to do."),
    "other_copy": Reason(
        "skipped",
        "{where} differs from the copy of the same scan, ingested from another source, that is listed as volume {detail}; that one "
        "stays. To have this one, withdraw the other (prdit remove).",
        transient=True,
    ),
    "withdrawn": Reason(
        "skipped",
        "{where} is volume {detail}, or a shorter copy of it, which was withdrawn: prdit remove --undo takes that back.",
        transient=True,
    ),
    "forgotten": Reason(
        "skipped",
        "{where} is of a patient who was forgotten ({detail}), and stays out. Delete its files from the source: prdit forget "
        "deletes nothing there.",
    ),
    "duplicate_volume": Reason(
        "skipped",
        "{where} has the pixels and place of volume {detail}, perhaps in another format or order of axes; it is kept once.",
    ),
    # -- quarantined: broken
    "held": Reason(
        "quarantined",
        "{where} is committed but not listed, because its batch was held: {detail}. A person decides about the batch: prdit inbox.",
        transient=True,
    ),
    "unreadable_file": Reason("quarantined", "{where} cannot be read ({detail}): check permissions and copy it again."),
    "archive_member": Reason("quarantined", "{where} cannot be read from its archive ({detail}): unpack it by hand."),
    "unreadable_pixels": Reason(
        "quarantined", "{where} has pixel data that cannot be decoded ({detail}): copy or export it again."
    ),
    "other_scan": Reason(
        "quarantined",
        "{where} has the id of another scan ({detail}), which stays. If they are parts of one scan, ingest them from one folder; "
        "else give one of them an id of its own (SeriesInstanceUID), or withdraw the other (prdit remove).",
        transient=True,
    ),
    "missing_series_uid": Reason("quarantined", "{where} is CT without SeriesInstanceUID: export the series again."),
    "missing_rescale": Reason(
        "quarantined",
        "{where} has no usable scaling to HU ({detail}): export it again with one.",
    ),
    "missing_geometry": Reason(
        "quarantined", "{where} lacks {detail}, so its place in space is unknown: export it again with that."
    ),
    "conflicting_geometry": Reason(
        "quarantined",
        "{where} is placed differently by two entries of its header ({detail}): correct or remove the wrong one.",
    ),
    "impossible_hu": Reason(
        "quarantined",
        "{where} has values that no CT has ({detail}): correct its scaling to HU, or copy or export it again in HU.",
    ),
    "no_content": Reason("quarantined", "{where} shows nothing ({detail}): copy or export it again."),
    "not_finite": Reason(
        "quarantined",
        "{where} has voxels that are no finite number ({detail}): export it again, or set ingest.nan to air if they are fill.",
    ),
    "several_arrays": Reason(
        "quarantined",
        "{where} contains {detail}, so which is the CT and in what spacing is not known: keep only the array ct.",
    ),
    "detached_data": Reason(
        "quarantined",
        "{where} keeps its voxels in another file, which was not read ({detail}): put that file beside the header.",
    ),
    "multi_volume": Reason(
        "quarantined", "{where} is not one 3-D volume ({detail} voxels): split it into files of three axes each."
    ),
    "too_few_slices": Reason(
        "quarantined", "{where} has {detail}: complete it, or lower ingest.min_slices if it is a whole scan."
    ),
    "too_short": Reason(
        "quarantined",
        "{where} is {detail}: complete it, or lower ingest.min_length_mm if that is a whole scan.",
    ),
    "too_narrow": Reason(
        "quarantined", "{where} is {detail}: export a larger field of view, or lower ingest.min_width_mm."
    ),
    "thick_slices": Reason(
        "quarantined", "{where} has {detail}: ingest a finer reconstruction, or raise ingest.max_slice_mm."
    ),
    "incomplete": Reason("quarantined", "{where} is incomplete: {detail}. Fetch the missing slices and ingest again."),
    "one_series_per_slice": Reason(
        "quarantined",
        "{where} is one of {detail}: slices of one scan under a UID each. Export it again with one SeriesInstanceUID.",
    ),
    "several_patients": Reason("quarantined", "{where} has images of {detail}: separate them, and export them again."),
    "several_studies": Reason("quarantined", "{where} has images of {detail}: separate them by StudyInstanceUID."),
    "several_frames_of_reference": Reason(
        "quarantined",
        "{where} has {detail}, so its slices do not share one space: separate them by FrameOfReferenceUID.",
    ),
    "several_acquisitions": Reason(
        "quarantined",
        "{where} has {detail}, which are no whole volumes by their numbers: separate them, or export each as a series.",
    ),
    "several_kernels": Reason(
        "quarantined", "{where} has {detail}, and not each is a whole volume: export one series per reconstruction."
    ),
    "bad_number": Reason("quarantined", "{where} has {detail}: correct that in its header, or export it again."),
    "missing_slices": Reason("quarantined", "{where} has a gap: {detail}. Fetch the missing slices and ingest again."),
    "duplicate_slices": Reason(
        "quarantined", "{where} has different slices at one position ({detail}): split the phases or reconstructions."
    ),
    "inconsistent_orientation": Reason(
        "quarantined", "{where} has slices of different orientation ({detail}): split the series."
    ),
    "inconsistent_spacing": Reason(
        "quarantined",
        "{where} has uneven slice or pixel spacing ({detail}): export it again with one spacing, or as one series per spacing.",
    ),
    "inconsistent_shape": Reason("quarantined", "{where} has slices of different size ({detail}): split the series."),
    "inconsistent_position": Reason(
        "quarantined", "{where} has slices that do not lie on one line ({detail}): split or export the series again."
    ),
    "unsupported_pixels": Reason(
        "quarantined",
        "{where} has pixels in a form that is not read ({detail}): export it again as CT in 16-bit integers.",
    ),
    "too_large": Reason("quarantined", "{where} would need {detail}: check its size, spacing and positions."),
    "too_costly": Reason(
        "quarantined",
        "{where} was stopped ({detail}): its header or its compression claims more than a CT needs. Export it again.",
    ),
    "too_slow": Reason(
        "quarantined",
        "{where} was stopped ({detail}): ingest again when the machine does less, or export it again if that does not help.",
        transient=True,
    ),
    "damaged_volume": Reason(
        "quarantined",
        "{where} is in the store already, but damaged there ({detail}): ingest again with --repair.",
        transient=True,
    ),
    "worker_died": Reason(
        "quarantined",
        "The process reading {where} died twice ({detail}): ingest again with fewer workers where memory was short (SIGKILL), else "
        "copy or export it again.",
        transient=True,
    ),
    "failed": Reason("quarantined", "{where} could not be ingested ({detail}): please report this.", transient=True),
}

# What verdicts depend on: settings of the ingest, and DICOM tags.
BEHIND: dict[str, tuple[str, ...]] = {
    "archive": ("ingest.archives",),
    "not_ct": ("SOPClassUID", "Modality"),
    "localizer": ("ImageType",),
    "single_image": ("AcquisitionNumber", "ImageType"),
    "secondary_capture": ("SOPClassUID",),
    "derived_reformat": ("ImageType",),
    "multi_frame": ("SOPClassUID", "NumberOfFrames"),
    "other_quantity": ("RescaleType", "ImageType"),
    "other_body_part": ("ingest.excluded_body_parts", "BodyPartExamined"),
    "missing_series_uid": ("SeriesInstanceUID",),
    "other_scan": ("SeriesInstanceUID", "PatientID", "ImagePositionPatient"),
    "missing_rescale": ("RescaleSlope", "RescaleIntercept"),
    "missing_geometry": ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    "not_finite": ("ingest.nan",),
    "too_few_slices": ("ingest.min_slices",),
    "too_short": ("ingest.min_length_mm",),
    "too_narrow": ("ingest.min_width_mm",),
    "thick_slices": ("ingest.max_slice_mm",),
    "incomplete": ("ImagesInAcquisition", "InConcatenationTotalNumber"),
    "one_series_per_slice": ("SeriesInstanceUID",),
    "several_patients": ("PatientID", "PatientName", "PatientBirthDate", "IssuerOfPatientID"),
    "several_studies": ("StudyInstanceUID", "StudyDate"),
    "several_frames_of_reference": ("FrameOfReferenceUID",),
    "several_acquisitions": ("AcquisitionNumber", "TemporalPositionIdentifier", "AcquisitionDate"),
    "several_kernels": ("ConvolutionKernel",),
    "missing_slices": ("ImagePositionPatient",),
    "duplicate_slices": ("ImagePositionPatient", "SOPInstanceUID"),
    "inconsistent_orientation": ("ImageOrientationPatient",),
    "inconsistent_spacing": ("ingest.max_jitter", "PixelSpacing", "ImagePositionPatient"),
    "inconsistent_shape": ("Rows", "Columns"),
    "inconsistent_position": ("ingest.max_jitter", "ImagePositionPatient"),
    "unsupported_pixels": ("SamplesPerPixel",),
}


_BROKEN = frozenset({"unreadable_file", "unreadable_pixels", "too_costly", "failed"})


def image_verdict(reason: str, where: str, detail: str) -> tuple[Verdict, str]:
    """(verdict, sentence) of one image that a whole volume was made without: what is not broken only does not belong."""
    row = REASONS[reason]
    if row.verdict == "skipped" or reason in _BROKEN:
        return row.verdict, sentence(reason, where, detail)
    what = reason.replace("_", " ") + (f": {detail}" if detail else "")
    return (
        "skipped",
        f"{where} is not part of the volume of its series ({what}), which is whole without it; nothing to do.",
    )


def counted(number: int, noun: str) -> str:
    """A number with a noun that takes an s in the plural: "1 slice", "2 slices"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sentence(reason: str, where: str, detail: str = "") -> str:
    """The sentence of a reason code for one place (series UID or relative path)."""
    return REASONS[reason].sentence.format(where=where, detail=detail or "no detail")
