"""Frames of a multi-frame data set: one header each, as if it were an image of its own.

Enhanced and legacy-converted enhanced images keep what a classic header says in functional groups, which all frames share or each
frame has for itself (PS3.3 C.7.6.16).
"""

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from storage.sources.dicom_codecs import num_frames
from storage.sources.dicom_errors import DECODE_ERRORS, DicomFault
from storage.sources.dicom_values import tag_present

GROUP_TAGS = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# What a frame's groups call otherwise than a classic header does.
_RENAMED = {
    Tag("FrameType"): Tag("ImageType"),
    Tag("FrameAcquisitionNumber"): Tag("AcquisitionNumber"),
    Tag("FrameAcquisitionDateTime"): Tag("AcquisitionDateTime"),
}


def has_frames(data: Dataset) -> bool:
    """Whether a data set has frames with headers of their own (`frame_headers`), be it one; its top level is no image's header."""
    return any(tag_present(data, name) for name in GROUP_TAGS[1:])


def frame_headers(data: Dataset, tags: Sequence[str], frames: Sequence[int] | None = None) -> list[Dataset]:
    """One classic header per frame, in the order of the pixel data.

    Args:
        data: with the tags of GROUP_TAGS.
        tags: keywords that a header has, where the frame, all frames or the top level have them (in this order).
        frames: indices from 0; all when None.
    Raises: DicomFault: bad_number, missing_geometry where some frames have a position and others do not, or unreadable_file.
    """
    count = num_frames(data)
    wanted = {Tag(name) for name in tags}
    try:
        shared = _items(data, "SharedFunctionalGroupsSequence")
        own = _items(data, "PerFrameFunctionalGroupsSequence")
        if len(own) not in (0, count) or (count > 1 and not own):
            raise DicomFault("bad_number", f"NumberOfFrames of {count} and functional groups of {len(own)} frames")
        base = Dataset()
        _take(base, data, wanted)
        for group in shared[:1]:
            _take_groups(base, group, wanted)
        headers = [_frame_header(base, own[index] if own else None, wanted) for index in frames or range(count)]
    except DicomFault:
        raise
    except DECODE_ERRORS as error:
        raise DicomFault("unreadable_file", f"functional groups: {type(error).__name__}") from error
    placed = ["ImagePositionPatient" in header for header in headers]
    if any(placed) and not all(placed):
        raise DicomFault(
            "missing_geometry", f"ImagePositionPatient in frame {placed.index(False) + 1} of {len(placed)}"
        )
    return headers


def _frame_header(base: Dataset, group: Dataset | None, wanted: set[Tag]) -> Dataset:
    header = Dataset()
    header.update(base)
    if group is not None:
        _take_groups(header, group, wanted)
    return header


def _take_groups(header: Dataset, groups: Dataset, wanted: set[Tag]) -> None:
    """What the first item of each functional group says."""
    for tag in groups.keys():  # noqa: SIM118 - iterating a data set converts its elements
        element = groups[tag]
        if element.VR == "SQ" and element.value:
            _take(header, element.value[0], wanted)


def _take(header: Dataset, data: Dataset, wanted: set[Tag]) -> None:
    for tag in data.keys():  # noqa: SIM118
        target = _RENAMED.get(tag, tag)
        if target not in wanted:
            continue
        element = data.get_item(tag)
        if target != tag:
            header.add_new(target, element.VR, data[tag].value)
        else:
            header[tag] = element


def _items(data: Dataset, name: str) -> Sequence[Dataset]:
    return data[name].value or [] if name in data else []
