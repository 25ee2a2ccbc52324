"""Where source and detector of each radiograph stood: what its header says, and what the operator says where it does not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.inverse.rays import View, detector_axes
from storage.errors import InputError
from storage.sources.radiographs import Radiograph

_OF_DISTANCE = 0.01  # relative: of the operator's values to the header's
_OF_ANGLE, _OF_NAMED_VIEW = 2.0, 15.0  # degrees
_SIDES = {
    "L": (1.0, 0.0, 0.0), "R": (-1.0, 0.0, 0.0), "P": (0.0, 1.0, 0.0), "A": (0.0, -1.0, 0.0), "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}  # fmt: skip
_ALONG = 0.5  # cosine: a side of the image lies along a side of the patient, or up to 60° beside it


@dataclass(frozen=True)
class Placed:
    """One radiograph with its geometry complete.

    Attributes:
        image: as it was found.
        view: with its own distances, for the whole image.
        pitch_mm: of its pixels once `turned`: along rows' and columns' indices (down, right).
        turns: whether to swap axes, and then to flip rows and columns, so that columns grow to the right as seen from the detector.
    """

    image: Radiograph
    view: View
    pitch_mm: tuple[float, float]
    turns: tuple[bool, bool, bool]

    def turned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Pixels (rows, columns) as the operator has them: down and right as seen from the detector."""
        swap, up, left = self.turns
        values = values.T if swap else values
        return values[:: -1 if up else 1, :: -1 if left else 1]

    @property
    def magnification(self) -> float:
        """Of what lies in the isocentre, on the detector."""
        to_isocentre, to_detector = self.view.source_to_isocentre_mm, self.view.source_to_detector_mm
        return 1.0 if to_isocentre is None or to_detector is None else to_detector / to_isocentre


def placed(
    images: Sequence[Radiograph], operator: Mapping[str, Any], orientation: tuple[str, str] | None
) -> tuple[list[Placed], list[str]]:
    """The geometry of radiographs, and notes about what was assumed.

    Args:
        images: as they were found.
        operator: settings of an operator `projection`, of which the geometry may be left out.
        orientation: of images whose header has none, see `RadiographHeader`.
    Raises: InputError: what neither header nor operator has, with the names of both; or where they differ.
    """
    views = operator.get("views") or [{}] * len(images)
    if not isinstance(views, list | tuple) or not all(isinstance(view, Mapping) for view in views):
        raise InputError(
            f"views of the operator is {views!r}; expected a list of mappings, or none: headers have the angles."
        )
    known = [field.name for field in fields(View)]
    for number, view in enumerate(views):
        if unknown := [str(key) for key in view if key not in known]:
            raise InputError(
                f"views[{number}] of the operator has unknown keys: {', '.join(unknown)}. Known here: {', '.join(known)}."
            )
    if len(views) != len(images):
        raise InputError(
            f"The operator has {len(views)} views, and there are {len(images)} radiographs ({images[0].place}, …). Leave views "
            "out, or give one for each, in the order of the files' names."
        )
    shape = operator.get("detector_shape")
    for image in images:
        if shape is not None and tuple(shape) != image.header.shape:
            raise InputError(
                f"detector_shape is {list(shape)} in the operator, and {list(image.header.shape)} (rows, columns) in the header of "
                f"{image.place}. Leave it out."
            )
    notes: list[str] = []
    found = [
        _placed(image, {**operator, **view}, orientation, notes) for image, view in zip(images, views, strict=True)
    ]
    return found, list(dict.fromkeys(notes))


def _placed(
    image: Radiograph, given: Mapping[str, Any], orientation: tuple[str, str] | None, notes: list[str]
) -> Placed:
    """One image; `given` is the operator's settings with those of the view over them."""
    header = image.header
    named = _OF_NAMED_VIEW if header.nominal_angle else _OF_ANGLE
    attribute = "ViewPosition" if header.nominal_angle else "PositionerPrimaryAngle"
    settings: dict[str, Any] = {
        "angle_deg": _number(image, given, "angle_deg", (attribute, header.angle_deg), named),
        "tilt_deg": _number(
            image, {"tilt_deg": 0.0, **given} if header.tilt_deg is None else given, "tilt_deg",
            ("PositionerSecondaryAngle", header.tilt_deg), _OF_ANGLE,
        ),
        "detector_offset_mm": given.get("detector_offset_mm", (0.0, 0.0)),
        "isocentre_mm": given.get("isocentre_mm"),
    }  # fmt: skip
    if given.get("beam", "cone") != "parallel":
        isocentre = header.source_to_isocentre_mm
        if not header.c_arm and "source_to_isocentre_mm" in given:
            isocentre = None  # of a film it is an estimate, which need not agree
        for name, there in (
            ("source_to_detector_mm", ("DistanceSourceToDetector", header.source_to_detector_mm)),
            ("source_to_isocentre_mm", ("DistanceSourceToPatient", isocentre)),
        ):
            settings[name] = _number(image, given, name, there, None)
    view = View(**settings)
    known = header.orientation or orientation
    if known is None and not header.c_arm:
        raise InputError(
            f"{image.place} has no PatientOrientation, so left and right are not known. Give patient_orientation under radiograph "
            "in the operator: L\\F, where the patient's left is on the right of the image and the feet at its bottom."
        )
    if known is None:
        notes.append("images without PatientOrientation are taken as seen from the detector, the head at the top")
    if "detector_offset_mm" not in given:
        notes.append("the central ray is taken to meet the middle of each image (detector_offset_mm)")
    if not header.c_arm:
        notes.append(
            "films have no common isocentre: the model's box is put on their central rays (isocentre_mm of a view moves it)"
        )
    turns = (False, False, False) if known is None else _turns(image, known, view)
    pitch = _pitch(image, given)
    return Placed(image, view, (pitch[1], pitch[0]) if turns[0] else pitch, turns)


def _number(
    image: Radiograph, given: Mapping[str, Any], setting: str, there: tuple[str, float | None], most_deg: float | None
) -> float:
    """A number of the operator or the header, which must agree where both have it.

    Args:
        image: for messages.
        given: by the operator.
        setting: its name.
        there: name and value of the header's attribute.
        most_deg: how many degrees they may differ; None: distances.
    """
    (attribute, in_header), in_operator = there, given.get(setting)
    if in_operator is None:
        if in_header is None:
            also = " and no ViewPosition of PA, AP, LL or RL" if setting == "angle_deg" else ""
            film = setting == "source_to_isocentre_mm" and not image.header.c_arm
            attribute += " with BodyPartThickness" if film else ""
            where = "the operator's views, one mapping for each image" if setting == "angle_deg" else "the operator"
            raise InputError(f"{image.place} has no {attribute}{also}: set {setting} in {where}.")
        return in_header
    if isinstance(in_operator, bool) or not isinstance(in_operator, int | float) or not math.isfinite(in_operator):
        raise InputError(f"{setting} of the operator is {in_operator!r}; expected a number.")
    if in_header is not None:
        apart = abs(in_operator - in_header)
        if most_deg is not None:
            apart = abs((apart + 180) % 360 - 180)
        if apart > (_OF_DISTANCE * in_header if most_deg is None else most_deg):
            raise InputError(
                f"{setting} is {in_operator:g} in the operator, and {in_header:g} in the header of {image.place} ({attribute}). "
                "Leave it out of the operator, or correct it."
            )
    return float(in_operator)


def _pitch(image: Radiograph, given: Mapping[str, Any]) -> tuple[float, float]:
    """Of the stored pixels, between rows and between columns."""
    in_header, in_operator = image.header.pitch_mm, given.get("detector_pitch_mm")
    if in_operator is None:
        if in_header is None:
            raise InputError(
                f"{image.place} has no ImagerPixelSpacing: set detector_pitch_mm in the operator, the distance of the image's own "
                "pixels on the detector (PixelSpacing is another one)."
            )
        return in_header
    pair = tuple(in_operator) if isinstance(in_operator, list | tuple) else (in_operator, in_operator)
    if len(pair) != 2 or not all(isinstance(each, int | float) and each > 0 for each in pair):
        raise InputError(f"detector_pitch_mm is {in_operator!r}; expected a positive number of mm, or (rows, columns).")
    if in_header is not None and any(abs(a - b) > _OF_DISTANCE * b for a, b in zip(pair, in_header, strict=True)):
        raise InputError(
            f"detector_pitch_mm is {in_operator} in the operator, and {in_header[0]:g}, {in_header[1]:g} in the header of "
            f"{image.place} (ImagerPixelSpacing). Leave it out: pixels are averaged by bin, under radiograph."
        )
    return float(pair[0]), float(pair[1])


def _turns(image: Radiograph, orientation: tuple[str, str], view: View) -> tuple[bool, bool, bool]:
    """See `Placed.turns`.

    Raises: InputError: the image's sides are not those that a detector at this angle has.
    """
    _, down, right = (axis.numpy() for axis in detector_axes(view))
    columns, rows = (np.array(_SIDES[letter]) for letter in orientation)  # towards which each index grows
    swap = abs(columns @ down) > abs(columns @ right)
    if swap:
        columns, rows = rows, columns
    if min(abs(columns @ right), abs(rows @ down)) < _ALONG:
        raise InputError(
            f"{image.place} has columns towards {orientation[0]} and rows towards {orientation[1]} (PatientOrientation), which a "
            f"detector at {view.angle_deg:g}° and tilted by {view.tilt_deg:g}° cannot show. Correct angle_deg of the view."
        )
    return bool(swap), bool(rows @ down < 0), bool(columns @ right < 0)
