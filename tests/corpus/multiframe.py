"""Multi-frame CT of the corpus' world, written by hand from the slices of a series."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from tests.corpus.classic import put
from tests.corpus.member import Place

ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY = "1.2.840.10008.5.1.4.1.1.2.2"
_OF_FRAMES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_OF_FRAMES += ("RescaleSlope", "RescaleIntercept", "RescaleType", "InstanceNumber", "AcquisitionNumber")


def item(**tags: Any) -> DicomSequence:
    """A sequence of one item."""
    return DicomSequence([put(Dataset(), **tags)])


def multiframe(
    place: Place,
    slices: Sequence[Dataset],
    *,
    sop: str = ENHANCED,
    per_frame: Iterable[str] = (),
    stacks: Sequence[str] | None = None,
    number: int = 1,
) -> Dataset:
    """One data set with the slices as frames, in the order in which they are given.

    Args:
        sop: SOP class.
        per_frame: which functional groups are per frame although they could be shared: "orientation", "measures", "rescale".
        stacks: StackID of each frame.
        number: which image of the series.
    """
    per_frame = set(per_frame)
    first = slices[0]
    data = Dataset()
    for element in first:
        if element.keyword not in (*_OF_FRAMES, "PixelData"):
            data.add(element)
    data.SOPClassUID, data.SOPInstanceUID = sop, place.uid("multiframe", number)
    data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.InstanceNumber, data.NumberOfFrames = number, len(slices)
    data.SharedFunctionalGroupsSequence = DicomSequence([Dataset()])
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.CTImageFrameTypeSequence = item(FrameType=list(data.ImageType))
    if "BodyPartExamined" in first:
        shared.FrameAnatomySequence = item(FrameLaterality="U")
    frames = []
    depth_of = _stack_positions(slices)
    for k, one in enumerate(slices):
        frame = Dataset()
        stack = "1" if stacks is None else stacks[k]
        frame.FrameContentSequence = item(
            FrameAcquisitionNumber=one.get("AcquisitionNumber"),
            StackID=stack,
            InStackPositionNumber=depth_of[k],
            DimensionIndexValues=[1 if stacks is None else sorted(set(stacks)).index(stack) + 1, depth_of[k]],
        )
        frame.PlanePositionSequence = item(ImagePositionPatient=one.get("ImagePositionPatient"))
        for group, holder in _groups(one).items():
            if group in per_frame:
                put(frame, **holder)
            elif k == 0:
                put(shared, **holder)
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    data.DimensionOrganizationSequence = item(DimensionOrganizationUID=place.uid("dimensions"))
    data.DimensionIndexSequence = DicomSequence(
        [
            put(Dataset(), DimensionOrganizationUID=place.uid("dimensions"), DimensionIndexPointer=pointer,
                FunctionalGroupPointer=0x00209111)
            for pointer in (0x00209056, 0x00209057)
        ]
    )  # fmt: skip
    data.PixelData = b"".join(one.PixelData for one in slices)
    return data


def _groups(one: Dataset) -> dict[str, dict[str, DicomSequence]]:
    return {
        "orientation": {"PlaneOrientationSequence": item(ImageOrientationPatient=one.get("ImageOrientationPatient"))},
        "measures": {
            "PixelMeasuresSequence": item(
                PixelSpacing=one.get("PixelSpacing"), SliceThickness=one.get("SliceThickness")
            )
        },
        "rescale": {
            "PixelValueTransformationSequence": item(
                RescaleSlope=one.get("RescaleSlope"),
                RescaleIntercept=one.get("RescaleIntercept"),
                RescaleType=one.get("RescaleType"),
            )
        },
    }


def _stack_positions(slices: Sequence[Dataset]) -> list[int]:
    """InStackPositionNumber of each slice: its rank along the slices' normal."""
    row, column = np.split(np.asarray([float(v) for v in slices[0].ImageOrientationPatient]), 2)
    normal = np.cross(row, column)
    depth = [
        float(np.asarray([float(v) for v in one.get("ImagePositionPatient") or (0, 0, 0)]) @ normal) for one in slices
    ]
    order = {place: rank + 1 for rank, place in enumerate(sorted(set(np.round(depth, 4))))}
    return [order[round(value, 4)] for value in depth]
