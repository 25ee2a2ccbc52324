"""What an evaluation compares: the volumes of both sides, and what is known of them."""

from dataclasses import dataclass
from typing import Self

from storage.artifacts import Ref, input_ref, load_provenance
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.errors import InputError
from storage.snapshots import open_snapshot
from storage.volume_store import VolumeStore
from tasks.evaluate.sides import Volumes, halves
from tasks.model.checkpoint import CheckpointInfo, load_info


@dataclass(frozen=True)
class Sources:
    """Both sides.

    Attributes:
        info: the sampled checkpoint, at the edge of the samples.
        drawn: the list of samples.
        roles: of the real volumes.
        real, generated: the volumes.
        halved: ids of two halves of the real volumes that share no patient, for floor and order test.
        trained_on_split: whether the checkpoint was trained on the volumes of role `train`.
    """

    info: CheckpointInfo
    drawn: Samples
    roles: Split
    real: Volumes
    generated: Volumes
    halved: tuple[list[str], list[str]]
    trained_on_split: bool

    @classmethod
    def open(cls, samples: Ref, snapshot: Ref, split: Ref) -> Self:
        """Open the stores of both sides.

        Args:
            samples, snapshot, split: references.
        Raises:
            InputError: the two sides have voxels of different sizes.
            StorageError: an artifact is missing or damaged.
        """
        checkpoint = input_ref(samples, "checkpoint")
        drawn, roles = Samples.load(samples.path), Split.load(split.path)
        info = load_info(checkpoint).at(drawn.view.edge)
        store, listed = open_snapshot(snapshot)
        if abs(store.spacing_mm - info.spacing_mm) > 1e-6:
            raise InputError(
                f"The store at {store.path} has {store.spacing_mm} mm voxels, the checkpoint was trained at {info.spacing_mm} mm: "
                "the same view would cover a box of another size in mm. Evaluate on a store of that spacing."
            )
        trained_on = load_provenance(checkpoint).inputs.get("split")
        return cls(
            info=info,
            drawn=drawn,
            roles=roles,
            real=Volumes(VolumeStore.open(store.path.resolve()), info.window, info.view),
            generated=Volumes(VolumeStore.open((samples.path / drawn.store).resolve()), info.window, None),
            halved=halves({name: listed.volumes[name].patient_key for name in roles.volume_ids}),
            trained_on_split=trained_on is not None and trained_on.digest == split.digest,
        )
