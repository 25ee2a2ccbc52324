"""Training volumes as a frozen encoder of the family leaves them: computed once, kept on disk, read in their place.

Where volumes are changed whenever they are shown (max_shift, augmentation), the family encodes them at every step.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prdit_models.families.family import EncodingFamily
from storage.documents.encoded import EncodedOrigin
from storage.encoded import EncodedVolumes
from storage.errors import DamagedArtifactError, as_input_error
from tasks.model.checkpoint import CheckpointInfo
from tasks.train.augmentation import Augmentation, Change
from tasks.train.data import ViewDataset
from tasks.train.ranks import Ranks
from tasks.train.spec import TrainSpec

logger = logging.getLogger("prdit.train")


class EncodedDataset:
    """Encoded volumes in the place of a `ViewDataset`.

    Args:
        kept: where they are kept; all of them are there.
        volume_ids: which volumes, in this order.
        shape: of each.
    """

    def __init__(self, kept: EncodedVolumes, volume_ids: Sequence[str], shape: tuple[int, ...]) -> None:
        self.augmentation, self.masker = Augmentation(), None
        self.shape = shape
        self._kept = kept
        self._ids = list(volume_ids)

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, index: int, change: Change | None = None) -> Tensor:
        """One volume as it was encoded, float32.

        Raises: DamagedArtifactError: it is not there any more as it was saved.
        """
        values = self._kept.load(self._ids[index])
        if values is None or values.shape != self.shape:
            raise DamagedArtifactError(
                f"What volume {self._ids[index]} was encoded to is missing in {self._kept.folder}, or damaged. Start the training "
                "again: it encodes the volume, and resumes."
            )
        return torch.from_numpy(values)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Stacked volumes."""
        return torch.stack([self.get(index) for index in indices])


@dataclass(frozen=True)
class Encoder:
    """A family's network that encodes volumes, and where what it makes is kept.

    Attributes:
        family: has `encode` and `encoded_shape`.
        module: on its device.
        info: of the checkpoint that is made.
        device: of the module.
        kept: see `storage.encoded`.
    """

    family: EncodingFamily
    module: nn.Module
    info: CheckpointInfo
    device: torch.device
    kept: EncodedVolumes

    def of(self, data: ViewDataset, volume_ids: Sequence[str], ranks: Ranks) -> EncodedDataset:
        """The volumes of a data set, encoded; the ranks share those that are not there yet.

        Args:
            data: the volumes as the model sees them.
            volume_ids: their ids.
            ranks: which of them this is; all have the same data.
        """
        found = 0
        for first in range(0, len(volume_ids), ranks.world):
            index = first + ranks.rank
            if index < len(volume_ids):
                found += self._encode(data, index, volume_ids[index])
            ranks.meet()  # so that none waits for another longer than for one volume
        if found:
            logger.info("%d of %d volumes encoded into %s", found, len(volume_ids), self.kept.folder)
        shape = tuple(self.family.encoded_shape(self.info.model))
        return EncodedDataset(self.kept, volume_ids, shape)

    def prepare(self, settings: Any, encoded: EncodedDataset) -> None:
        """Let the family measure what it needs of the training volumes. Raises: InputError: they cannot be trained on."""
        with as_input_error():
            self.family.prepare(self.module, settings, (encoded.get(index) for index in range(len(encoded))))

    @torch.no_grad()
    def _encode(self, data: ViewDataset, index: int, volume_id: str) -> int:
        if self.kept.load(volume_id) is not None:
            return 0
        encoded = self.family.encode(self.module, data.get(index).unsqueeze(0).to(self.device))
        self.kept.save(volume_id, encoded[0].float().cpu().numpy().astype(np.float32))
        return 1


def origin_of(spec: TrainSpec, info: CheckpointInfo, device: torch.device) -> EncodedOrigin:
    """What the encoded volumes of a training are of."""
    if spec.start is None:
        raise ValueError(f"Family {info.family!r} encodes volumes, but starts from no checkpoint that has an encoder.")
    described = info.to_document(step=0, seed=0, gates=None)
    return EncodedOrigin(
        encoder=spec.start.digest,
        weights=spec.config.start_weights,
        snapshot=spec.snapshot.digest,
        view=described.view,
        intensity=described.intensity,
        axes=info.axes,
        device=device.type,
    )
