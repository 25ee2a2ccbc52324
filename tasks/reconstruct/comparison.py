"""Samples of one measurement, compared with it, and with the truth behind it where that is known."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.inverse.accuracy import coverage, error_by_tissue, psnr_db, ssim
from prdit_models.inverse.estimate import VoxelMoments
from prdit_models.inverse.operator import MeasurementOperator
from storage.artifacts import Ref, input_ref
from storage.documents.measurement import Simulated
from storage.documents.reconstruction import Accuracy, Truth
from storage.documents.samples import Samples
from storage.volume_store import VolumeStore
from tasks.reconstruct.baselines import baselines
from tasks.reconstruct.placing import kept_of
from tasks.reconstruct.setting import Setting
from tasks.reconstruct.truth import Seen, truth_of

Hu = NDArray[np.float32]


class Drawn:
    """The samples of an artifact, as the model can mean them.

    Args:
        directory: of the artifact.
        setting: of the model; values beyond its window are what saturates, and count as its ends.

    Attributes:
        ids: of the volumes, in order.
    """

    def __init__(self, directory: Path, setting: Setting) -> None:
        samples = Samples.load(directory)
        self.setting, self.ids = setting, list(samples.volume_ids)
        self._store = VolumeStore.open(directory / samples.store)

    def read(self, name: str) -> Hu:
        """One volume, HU in the window, shape (S, S, S)."""
        hu = self._store.read_level(name).hu.astype(np.float32)
        return np.clip(hu, self.setting.window.lower_hu, self.setting.window.upper_hu)


@dataclass(frozen=True)
class Comparison:
    """What volumes are compared with.

    Attributes:
        operator: of the measurement.
        values: of it, shape (1, …).
        setting: of the model.
    """

    operator: MeasurementOperator
    values: torch.Tensor
    setting: Setting

    def residual(self, hu: Hu) -> float:
        """Root mean square of measurement minus A·volume, in the measurement's unit, where anything was measured."""
        found = self.operator.forward(torch.from_numpy(np.ascontiguousarray(hu))[None, None])
        left = (self.values - found).double()
        measured = getattr(self.operator, "measured_pixels", None)
        return float((left if measured is None else left[:, measured]).square().mean().sqrt())

    def with_truth(
        self, refs: tuple[Ref, Ref], simulated: Simulated, drawn: Drawn, moments: VoxelMoments
    ) -> tuple[Truth, dict[str, Hu]]:
        """What is known because the measurement was simulated, and the volumes that were compared, the truth first.

        Args:
            refs: (checkpoint, measurement).
            simulated: of the measurement.
            drawn: the samples.
            moments: of them.
        Raises: StorageError: the measured volume is not there any more.
        """
        checkpoint, measurement = refs
        window, seen = self.setting.window, Seen.by(checkpoint)
        truth = truth_of(measurement, simulated, self.setting)
        volumes = {"mean": moments.mean.astype(np.float32), "sample": drawn.read(drawn.ids[0])}
        kept = kept_of(self.operator)
        missing = None if kept is None or kept.all() else ~kept
        volumes |= baselines(self.operator, self.values, (window.lower_hu, window.upper_hu))
        found = Truth(
            volume_id=simulated.volume_id,
            role=seen.role(input_ref(measurement, "snapshot"), simulated.volume_id),
            accuracy={name: self._accuracy(truth, hu) for name, hu in volumes.items()},
            coverage=coverage(truth, moments, among=missing) if moments.count > 1 else {},
            likeness=seen.likeness(drawn.ids, drawn.read, truth, self.setting),
        )
        return found, {"truth": truth} | volumes

    def _accuracy(self, truth: Hu, hu: Hu) -> Accuracy:
        window = self.setting.window
        return Accuracy(
            psnr_db=psnr_db(truth, hu, window),
            ssim=ssim(truth, hu, window),
            error_hu=error_by_tissue(truth, hu),
            residual=self.residual(hu),
        )
