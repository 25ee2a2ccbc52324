"""Stage measure: a stored volume, a scan or projections -> a measurement that volumes can be drawn towards."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.inverse.operator import MeasurementOperator, simulate
from storage.artifacts import Ref
from storage.checkpoints import load_tensors, save_tensors
from storage.documents.measurement import MeasuredGrid, Measurement, Recorded, Simulated
from storage.errors import DamagedArtifactError, InputError
from storage.files import reading, sha256_file
from storage.geometry import Float3
from storage.snapshots import open_snapshot
from storage.sources.one_scan import OneScan
from storage.sources.source import Limits
from storage.volume_store import VolumeStore
from tasks.reconstruct.placing import kept_of, place
from tasks.reconstruct.possible import check_possible
from tasks.reconstruct.setting import Setting, operator_on, owners_of
from tasks.reconstruct.taken import Taken, centred_origin, check_water
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage, with_owners

RECIPE = 1
MEASURE = Stage("measure", "measurement", RECIPE, files=(Measurement.NAME,))
_VALUES = "values"


class Source(Protocol):
    """Where a measurement comes from."""

    @property
    def inputs(self) -> Mapping[str, Ref]:
        """Artifacts that it is made from, by role."""

    def key_fields(self) -> dict[str, Any]:
        """What else decides its values."""

    def take(self, operator: MeasurementOperator, setting: Setting) -> Taken:
        """The values. Raises: InputError: they do not fit the operator; StorageError."""


@dataclass(frozen=True)
class StoredVolume:
    """A volume of a store, measured by the operator itself, with noise: the truth is known.

    Attributes:
        snapshot: that lists it.
        volume_id: of it.
        seed: of the noise.
    """

    snapshot: Ref
    volume_id: str
    seed: int = 0

    @property
    def inputs(self) -> Mapping[str, Ref]:
        """The snapshot."""
        return {"snapshot": self.snapshot}

    def key_fields(self) -> dict[str, Any]:
        """Volume and seed."""
        return {"volume_id": self.volume_id, "noise_seed": self.seed}

    def take(self, operator: MeasurementOperator, setting: Setting) -> Taken:
        """A·x + b + noise, of the volume as the model sees it."""
        store = self._opened(setting)
        view = setting.view
        hu = store.read_view(self.volume_id, view.size, view.edge, view.centre)
        seen, outside = _saturated(hu, setting)
        generator = torch.Generator().manual_seed(self.seed)
        values = simulate(operator, torch.from_numpy(seen)[None, None], generator)[0].numpy()
        origin = Simulated(snapshot=self.snapshot.digest, volume_id=self.volume_id, seed=self.seed)
        return Taken(values.astype(np.float32), _origin(store, self.volume_id, setting), outside, origin)

    def _opened(self, setting: Setting) -> VolumeStore:
        store, listed = open_snapshot(self.snapshot)
        if self.volume_id not in listed.volumes:
            known = sorted(listed.volumes)
            raise InputError(
                f"{self.volume_id!r} is not a volume of {store.path}, which has {len(known)} (such as "
                f"{known[0] if known else 'none'}). `prdit ls {store.path} --volumes` lists them."
            )
        if store.spacing_mm != setting.spacing_mm:
            raise InputError(
                f"The store {store.path} has voxels of {store.spacing_mm:g} mm; the model was trained on "
                f"{setting.spacing_mm:g} mm. Ingest the scans into a store of its grid (ingest.spacing_mm={setting.spacing_mm:g})."
            )
        return store


@dataclass(frozen=True)
class ScanFiles:
    """A scan from a file or a folder: what is measured of it is what it shows.

    Attributes:
        scan: that was found.
        limits: what counts as a scan.
    """

    scan: OneScan
    limits: Limits = field(default_factory=Limits)
    inputs: Mapping[str, Ref] = field(default_factory=dict)

    def key_fields(self) -> dict[str, Any]:
        """The content of its files, and how they are read."""
        return {"files_digest": self.scan.digest, "limits": asdict(self.limits)}

    def take(self, operator: MeasurementOperator, setting: Setting) -> Taken:
        """The scan's HU where the operator measures."""
        placed = place(self.scan.read(self.limits), operator)
        values, outside = _saturated(placed.values, setting)
        if kept_of(operator) is not None:
            values = operator.forward(torch.from_numpy(values)[None, None])[0].numpy()
        origin = Recorded(format=self.scan.format, files_digest=self.scan.digest, notes=placed.notes)
        return Taken(values, placed.origin_mm, outside, origin)


@dataclass(frozen=True)
class ArrayFile:
    """Projections in mm of water from an .npy file, in the order of the operator's views."""

    path: Path
    inputs: Mapping[str, Ref] = field(default_factory=dict)

    def key_fields(self) -> dict[str, Any]:
        """The content of the file."""
        return {"files_digest": self._digest}

    @property
    def _digest(self) -> str:
        return "sha256:" + sha256_file(self.path)

    def take(self, operator: MeasurementOperator, setting: Setting) -> Taken:
        """The values of the file."""
        if operator.unit != "mm":
            raise InputError(
                f"{self.path} is an array without geometry; {operator.name!r} measures a volume in {operator.unit}. Give a NIfTI "
                "file or a DICOM series, whose voxels have a place and a size."
            )
        values = self._values()
        shape = operator.measurement_shape()
        if values.shape != tuple(shape):
            raise InputError(
                f"{self.path} has shape {values.shape}; the views of operator {operator.name!r} have {tuple(shape)}. Correct "
                "the number of views or the detector in the operator's settings."
            )
        check_water(values, str(self.path))
        return Taken(values, centred_origin(operator.grid), 0.0, Recorded(format="npy", files_digest=self._digest))

    def _values(self) -> NDArray[np.float32]:
        try:
            with reading(self.path):
                found = np.load(self.path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{self.path} is not an .npy file of numbers. Write it with numpy.save.") from error
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "iuf":
            raise InputError(f"{self.path} has no array of real numbers. Write it with numpy.save.")
        values = found.astype(np.float32)
        if not (finite := np.isfinite(values)).all():
            raise InputError(
                f"{self.path} has {int((~finite).sum())} of {values.size} values that are no finite number; repair them, or leave "
                "their view out."
            )
        return values


def measure_stage(source: Source, operator: Mapping[str, Any], setting: Setting, context: RunContext) -> StageOutcome:
    """Make a measurement, or find it.

    Args:
        source: where it comes from.
        operator: name and settings.
        setting: of the model that it is made for.
        context: where the run works and reports.
    Raises: InputError, StorageError: the operator or the source cannot be used.
    """
    made = operator_on(operator, setting.grid)
    config = {"operator": made.to_dict(), **setting.key_fields(), **source.key_fields()}

    def body(run: StageRun) -> None:
        taken = source.take(made, setting)
        if isinstance(taken.origin, Recorded):
            check_possible(taken.values, made)
        sha256 = save_tensors(run.directory / Measurement.VALUES, {_VALUES: np.ascontiguousarray(taken.values)})
        grid = made.grid
        Measurement(
            operator=made.to_dict(),
            unit=made.unit,
            shape=taken.values.shape,
            sha256=sha256,
            noise_std=made.noise_std,
            saturated_fraction=taken.saturated_fraction,
            grid=MeasuredGrid(shape=grid.shape, spacing_mm=grid.spacing_mm, origin_mm=taken.origin_mm),
            **{"simulated" if isinstance(taken.origin, Simulated) else "recorded": taken.origin},
        ).save(run.directory)

    return run_stage(
        MEASURE,
        inputs=dict(source.inputs),
        config=with_owners(config, owners_of(operator)),
        context=context,
        body=body,
    )


def load_measurement(ref: Ref) -> tuple[Measurement, torch.Tensor]:
    """A measurement and its values, shape (1, …).

    Raises:
        InputError: a reference to something else.
        StorageError: it is missing or damaged.
    """
    if ref.kind != "measurement":
        raise InputError(f"Expected a measurement, got a {ref.kind} at {ref.uri}.")
    document = Measurement.load(ref.path)
    path = ref.path / Measurement.VALUES
    values = load_tensors(path).get(_VALUES)
    if values is None or values.shape != document.shape or sha256_file(path) != document.sha256:
        raise DamagedArtifactError(f"{path} is not what {Measurement.NAME} beside it describes. {Measurement.REMEDY}")
    return document, torch.from_numpy(values)[None]


def _saturated(hu: NDArray[np.float32], setting: Setting) -> tuple[NDArray[np.float32], float]:
    """HU within the model's window, and the share that was not."""
    low, high = setting.window.lower_hu, setting.window.upper_hu
    return np.clip(hu, low, high), float(((hu < low) | (hu > high)).mean())


def _origin(store: VolumeStore, volume_id: str, setting: Setting) -> Float3:
    """Centre of the first voxel of a view."""
    view, record = setting.view, store.commit_record(volume_id)
    cut = store.cut(volume_id, view.size, view.edge, view.centre)
    step = view.edge // view.size
    first = [n * 2**cut.level + (step - 1) / 2 for n in cut.start]  # level-0 voxels (z, y, x)
    x, y, z = (o + n * s for o, n, s in zip(record.origin_mm, reversed(first), record.spacing_mm, strict=True))
    return x, y, z
