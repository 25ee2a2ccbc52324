"""What the header of a radiograph says: where source and detector stood, what a pixel value is, and where X-rays fell."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from storage.sources.dicom_errors import DicomFault
from storage.sources.dicom_values import tag_integer, tag_number, tag_numbers, tag_present, tag_text, tag_words

FILMS = {  # of a detector that stands behind the patient by hand
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX for presentation",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX for processing",
}
C_ARMS = {
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "XRF",
    "1.2.840.10008.5.1.4.1.1.12.1.1": "enhanced XA",
    "1.2.840.10008.5.1.4.1.1.12.2.1": "enhanced XRF",
}
_FIELD_TAGS = tuple(
    name.replace("*", device)
    for device in ("Collimator", "Shutter")
    for name in (
        "*Shape", "*LeftVerticalEdge", "*RightVerticalEdge", "*UpperHorizontalEdge", "*LowerHorizontalEdge",
        "CenterOfCircular*", "RadiusOfCircular*", "VerticesOfThePolygonal*",
    )
)  # fmt: skip
TAGS = (
    "SOPClassUID", "Modality", "Rows", "Columns", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "KVP",
    "PixelIntensityRelationship", "PixelIntensityRelationshipSign", "PresentationIntentType", "ModalityLUTSequence",
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PositionerType",
    "PositionerPrimaryAngle", "PositionerSecondaryAngle", "PositionerPrimaryAngleIncrement", "PositionerSecondaryAngleIncrement",
    "DistanceSourceToDetector", "DistanceSourceToPatient", "DistanceSourceToIsocenter", "BodyPartThickness", "ImagerPixelSpacing",
    "ViewPosition", "PatientOrientation", *_FIELD_TAGS,
)  # fmt: skip
_VIEW_ANGLES = {"PA": 0.0, "AP": 180.0, "LL": 90.0, "RL": -90.0}  # of the detector; LL: the left side lies at it
_OPPOSITES = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}


@dataclass(frozen=True)
class RadiographHeader:
    """One image; None is what its header does not say.

    Attributes:
        kind: as in `FILMS` and `C_ARMS`.
        c_arm: whether source and detector turn about an isocentre.
        shape: rows, columns.
        pitch_mm: of the pixels on the detector (between rows, between columns).
        angle_deg, tilt_deg: of the detector about the patient, as DICOM has them.
        nominal_angle: whether the angle is only that of a named view (PA).
        source_to_isocentre_mm: of a film: to the patient's middle.
        source_to_detector_mm: along the central ray.
        orientation: towards which side of the patient columns and rows grow, such as ("L", "F").
        relation: whether pixel values are linear in the intensity of X-rays or in its logarithm.
        unrelated: why they are neither, as far as the header says; "" where `relation` is known.
        sign: 1 where larger values are more X-rays, else -1.
        highest: pixel value that stands for the largest stored one.
        kvp: peak voltage of the tube.
    """

    kind: str
    c_arm: bool
    shape: tuple[int, int]
    pitch_mm: tuple[float, float] | None
    angle_deg: float | None
    tilt_deg: float | None
    nominal_angle: bool
    source_to_isocentre_mm: float | None
    source_to_detector_mm: float | None
    orientation: tuple[str, str] | None
    relation: Literal["intensity", "log"] | None
    unrelated: str
    sign: int
    highest: float
    kvp: float | None


def radiograph_header(header: Dataset, frame: int, num_frames: int) -> RadiographHeader:
    """Facts of one frame.

    Args:
        header: of the file, or of the frame where frames have headers of their own.
        frame: from 0.
        num_frames: that the header is of.
    Raises: DicomFault: bad_number, for angles of another number of frames.
    """
    sop = tag_text(header, "SOPClassUID")
    c_arm = sop in C_ARMS
    angle, nominal = _frame_angle(header, "Primary", frame, num_frames, c_arm), False
    tilt = _frame_angle(header, "Secondary", frame, num_frames, c_arm)
    if angle is None:
        angle = _VIEW_ANGLES.get(tag_text(header, "ViewPosition").upper())
        nominal = angle is not None
    relation, unrelated = _relation(header, c_arm)
    pitch = tag_numbers(header, "ImagerPixelSpacing", 2)
    slope, intercept = tag_number(header, "RescaleSlope"), tag_number(header, "RescaleIntercept")
    bits = tag_integer(header, "BitsStored") or tag_integer(header, "BitsAllocated") or 16
    return RadiographHeader(
        kind=C_ARMS.get(sop) or FILMS[sop],
        c_arm=c_arm,
        shape=(tag_integer(header, "Rows") or 0, tag_integer(header, "Columns") or 0),
        pitch_mm=None if pitch is None or min(pitch) <= 0 else (pitch[0], pitch[1]),
        angle_deg=angle,
        tilt_deg=tilt,
        nominal_angle=nominal,
        source_to_isocentre_mm=_source_to_isocentre(header, c_arm),
        source_to_detector_mm=_positive(header, "DistanceSourceToDetector"),
        orientation=orientation_of(tag_words(header, "PatientOrientation")),
        relation=relation,
        unrelated=unrelated,
        sign=_sign(header, c_arm),
        highest=(2.0**bits - 1) * (1.0 if slope is None else slope) + (intercept or 0.0),
        kvp=_positive(header, "KVP"),
    )


def orientation_of(words: tuple[str, ...]) -> tuple[str, str] | None:
    """The main letters of a PatientOrientation: towards which side columns and rows grow; None of anything else."""
    letters = tuple(word[:1].upper() for word in words)
    if len(letters) != 2 or not set(letters) <= set(_OPPOSITES) or letters[1] in (letters[0], _OPPOSITES[letters[0]]):
        return None
    return letters[0], letters[1]


def exposed(header: Dataset, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels within the collimator's and the shutter's edges, (rows, columns); all where there are none.

    Raises: DicomFault: bad_number, for a shape without its edges.
    """
    inside = np.ones(shape, dtype=bool)
    rows, columns = np.arange(1, shape[0] + 1)[:, None], np.arange(1, shape[1] + 1)  # as DICOM counts them
    for device in ("Collimator", "Shutter"):
        for form in tag_words(header, f"{device}Shape"):
            if form == "RECTANGULAR":
                left, right = (_edge(header, f"{device}{side}VerticalEdge") for side in ("Left", "Right"))
                upper, lower = (_edge(header, f"{device}{side}HorizontalEdge") for side in ("Upper", "Lower"))
                inside &= (columns > left) & (columns < right) & (rows > upper) & (rows < lower)
            elif form == "CIRCULAR":
                centre = tag_numbers(header, f"CenterOfCircular{device}", 2)
                radius = _edge(header, f"RadiusOfCircular{device}")
                if centre is None:
                    raise DicomFault("bad_number", f"CenterOfCircular{device} is missing")
                inside &= (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
            elif form == "POLYGONAL":
                inside &= _polygon(header, f"VerticesOfThePolygonal{device}", shape)
    return inside


def _polygon(header: Dataset, name: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels in a polygon of vertices (row, column, row, column, …), counted from 1."""
    numbers = tag_numbers(header, name, len(tag_words(header, name)))
    if not numbers or len(numbers) < 6 or len(numbers) % 2:
        raise DicomFault("bad_number", f"{name} of {len(numbers or ())} numbers instead of pairs of row and column")
    picture = Image.new("1", (shape[1], shape[0]))
    corners = [(column - 1, row - 1) for row, column in zip(numbers[::2], numbers[1::2], strict=True)]
    ImageDraw.Draw(picture).polygon(corners, fill=1)
    return np.asarray(picture, dtype=bool)


def _edge(header: Dataset, name: str) -> float:
    number = tag_number(header, name)
    if number is None:
        raise DicomFault("bad_number", f"{name} is missing")
    return number


def _frame_angle(header: Dataset, which: str, frame: int, num_frames: int, c_arm: bool) -> float | None:
    """Angle of one frame: increments are the mean step, or the offset of every frame from the first (PS3.3 C.8.7.5.1.3)."""
    angle = tag_number(header, f"Positioner{which}Angle")
    if angle is None or not (c_arm or tag_text(header, "PositionerType") == "CARM"):
        return None
    name = f"Positioner{which}AngleIncrement"
    steps = tag_numbers(header, name, len(tag_words(header, name)))
    if num_frames == 1 or not steps:
        return angle
    if len(steps) == 1:
        return angle + frame * steps[0]
    if len(steps) != num_frames:
        raise DicomFault("bad_number", f"{name} of {len(steps)} frames, the image has {num_frames}")
    return angle + steps[frame]


def _source_to_isocentre(header: Dataset, c_arm: bool) -> float | None:
    """Distance of the isocentre; of a film, whose header has that of the patient's far side, of the middle."""
    patient = _positive(header, "DistanceSourceToPatient")
    if c_arm:
        return _positive(header, "DistanceSourceToIsocenter") or patient
    thickness = _positive(header, "BodyPartThickness")
    return patient - thickness / 2 if patient is not None and thickness is not None else None


def _positive(header: Dataset, name: str) -> float | None:
    number = tag_number(header, name)
    return number if number is not None and number > 0 else None


def _relation(header: Dataset, c_arm: bool) -> tuple[Literal["intensity", "log"] | None, str]:
    """What pixel values are, after the modality LUT; else why that is not known."""
    for_presentation = FILMS.get(tag_text(header, "SOPClassUID")) == "DX for presentation"
    if for_presentation or tag_text(header, "PresentationIntentType") == "FOR PRESENTATION":
        return None, "is processed for presentation, which cannot be undone"
    given = tag_text(header, "PixelIntensityRelationship").upper()
    if tag_present(header, "ModalityLUTSequence"):  # in XA and XRF it leads back to the intensity (PS3.3 C.8.7.1.1.2)
        return ("intensity", "") if c_arm and given else (None, "has a modality LUT of unknown output")
    if given in ("LIN", "LOG"):
        return ("intensity" if given == "LIN" else "log"), ""
    return None, f"has {'values for display' if given == 'DISP' else 'no PixelIntensityRelationship of LIN or LOG'}"


def _sign(header: Dataset, c_arm: bool) -> int:
    """As PixelIntensityRelationshipSign; without it, XA is dark where X-rays were stopped, and a film is bright there."""
    sign = tag_integer(header, "PixelIntensityRelationshipSign")
    if sign in (1, -1):
        return sign
    return 1 if c_arm or tag_text(header, "PhotometricInterpretation") == "MONOCHROME1" else -1
