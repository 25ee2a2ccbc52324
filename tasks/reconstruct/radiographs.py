"""DICOM radiographs as a measurement of the operator `projection`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.inverse.operator import MeasurementOperator
from prdit_models.inverse.projection import Projection
from storage.artifacts import Ref
from storage.documents.measurement import Recorded
from storage.errors import InputError
from storage.sources.radiographs import find_radiographs
from tasks.reconstruct.radiograph_geometry import Placed, placed
from tasks.reconstruct.radiograph_values import Mask, RadiographSettings, Values, averages, water_mm
from tasks.reconstruct.setting import Setting, operator_on
from tasks.reconstruct.taken import Taken, centred_origin
from tasks.run.settings import settings_of

SECTION = "radiograph"  # of an operator's settings
_EDGE = 1e-6  # of a pixel


@dataclass(frozen=True)
class RadiographFiles:
    """Radiographs of one patient, read.

    Attributes:
        operator: settings of a `projection` with the views, the detector, and what was measured of it.
        values: mm of water of its shape, 0 where nothing was measured.
        files_digest: of the files.
        notes: what was assumed.
        inputs: none.
    """

    operator: Mapping[str, Any]
    values: NDArray[np.float32]
    files_digest: str
    notes: tuple[str, ...]
    inputs: Mapping[str, Ref] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, operator: Mapping[str, Any], setting: Setting) -> "RadiographFiles":
        """The radiographs of a file or folder.

        Args:
            path: where they are.
            operator: settings of a `projection`, of which views and detector may be left out; what headers do not say of pixel
                values stands under `radiograph`.
            setting: of the model.
        Raises:
            InputError: headers and operator lack a part of the geometry, or differ; or what pixel values are is not known.
            SourceError: there is no radiograph, or one that cannot be used.
        """
        own = settings_of(RadiographSettings, operator.get(SECTION) or {}, f"operator: {SECTION}")
        found = find_radiographs(path, own.frames)
        given = {key: value for key, value in operator.items() if key != SECTION}
        images, notes = placed(found.images, given, own.orientation)
        films: list[tuple[Values, Mask]] = []
        for image, (pixels, exposed) in zip(images, found.read(), strict=True):
            values, valid, more = water_mm(image.image, pixels, exposed, own)
            films.append((image.turned(values), image.turned(valid)))
            notes += more
        detector = _Detector.of(images, [valid for _, valid in films], setting, own.bin)
        complete = detector.operator(given, images, [valid.shape for _, valid in films])
        means = [detector.means(*each) for each in zip(images, detector.corners, films, strict=True)]
        measured = np.stack([whole for _, whole in means]) & _seen(complete, setting)
        if not measured.any():
            raise InputError(
                f"No pixel of {path} was exposed and sees the model's box; check isocentre_mm and detector_offset_mm."
            )
        water = np.where(measured, np.stack([values for values, _ in means]), np.float32(0))
        notes += detector.notes(images[0], float(measured.mean()), setting)
        return cls(
            complete | {"measured": Projection.measured_text(measured)},
            water,
            found.digest,
            (*found.notes, *dict.fromkeys(notes)),
        )

    def key_fields(self) -> dict[str, Any]:
        """The content of the files, and what it became, which depends on settings."""
        return {"files_digest": self.files_digest, "values": "sha256:" + sha256(self.values.tobytes()).hexdigest()}

    def take(self, operator: MeasurementOperator, setting: Setting) -> Taken:
        """The values, for an operator of `operator`."""
        origin = Recorded(format="dicom", files_digest=self.files_digest, notes=self.notes)
        return Taken(self.values, centred_origin(operator.grid), 0.0, origin)


@dataclass(frozen=True)
class _Detector:
    """The one detector of an operator, as large as the largest exposed part of an image.

    Attributes:
        shape: rows, columns.
        pitch_mm: between them.
        corners: first exposed row and column of each image.
    """

    shape: tuple[int, int]
    pitch_mm: tuple[float, float]
    corners: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, images: list[Placed], valid: list[Mask], setting: Setting, block: int | None) -> "_Detector":
        """Pixels of an image, averaged in blocks no larger than the shadow of a voxel in the isocentre; at least one pixel."""
        pixel = [max(image.pitch_mm[axis] for image in images) for axis in (0, 1)]
        shadow = min(setting.grid.spacing_mm) * min(image.magnification for image in images)
        pitch = [mm * (block or max(1, int(shadow / mm + _EDGE))) for mm in pixel]
        corners, counts = [], []
        for image, mask in zip(images, valid, strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            corners.append((int(rows[0]), int(columns[0])))
            size = (rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0])
            counts.append([int(n * mm / edge + _EDGE) for n, mm, edge in zip(size, image.pitch_mm, pitch, strict=True)])
        num_rows, num_columns = np.maximum(1, np.max(counts, axis=0))
        return cls((int(num_rows), int(num_columns)), (pitch[0], pitch[1]), tuple(corners))

    def operator(self, given: Mapping[str, Any], images: list[Placed], sizes: list[tuple[int, ...]]) -> dict[str, Any]:
        """Settings of the operator with this detector.

        Args:
            given: by the user.
            images: with their geometry.
            sizes: rows and columns of them.
        """
        views = []
        for image, corner, size in zip(images, self.corners, sizes, strict=True):
            offsets = [
                offset + (first - n / 2) * mm + count * edge / 2
                for offset, first, n, mm, count, edge in zip(
                    image.view.detector_offset_mm, corner, size, image.pitch_mm, self.shape, self.pitch_mm, strict=True
                )
            ]
            known = {key: value for key, value in asdict(image.view).items() if value is not None}
            views.append(known | {"detector_offset_mm": offsets})
        refused = given.get("beam") == "parallel"  # distances, by the operator; of other beams views have their own
        kept = {key: value for key, value in given.items() if refused or not key.startswith("source_to_")}
        return kept | {"views": views, "detector_shape": list(self.shape), "detector_pitch_mm": list(self.pitch_mm)}

    def means(self, image: Placed, corner: tuple[int, int], film: tuple[Values, Mask]) -> tuple[Values, Mask]:
        """Values of this detector's pixels, and which of them were measured."""
        edges = (self.pitch_mm[0] / image.pitch_mm[0], self.pitch_mm[1] / image.pitch_mm[1])
        return averages(*film, corner, edges, self.shape)

    def notes(self, image: Placed, share: float, setting: Setting) -> list[str]:
        """Sentences about what became of pixels.

        Args:
            image: one of them.
            share: of the pixels that were measured.
            setting: of the model.
        """
        rows, columns = (mine / its for mine, its in zip(self.pitch_mm, image.pitch_mm, strict=True))
        box = " × ".join(f"{mm:g}" for mm in setting.grid.extent_mm)
        return [
            f"blocks of {rows:.3g} × {columns:.3g} pixels became their mean, whose noise is that of noise_std",
            f"{share:.0%} of the detector was exposed and sees the model's box; the rest is not used",
            f"what lies outside of the model's box of {box} mm counts as air, though it has a shadow too",
        ]


def _seen(settings: dict[str, Any], setting: Setting) -> Mask:
    """Which pixels' rays meet the model's box.

    Raises: InputError: settings that the operator refuses.
    """
    operator = operator_on(settings, setting.grid)
    water: Mask = (operator.forward(torch.zeros(1, 1, *operator.grid.shape))[0] > 0).numpy()
    return water
