"""What is known of a simulated measurement: the volume itself, whether the model has seen its patient, and the training volumes."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prdit_models.metrics.neighbours import Known, coarser, nearest
from storage.artifacts import Ref, input_ref, load_provenance
from storage.documents.measurement import Simulated
from storage.documents.reconstruction import Likeness
from storage.documents.split import Split
from storage.errors import InputError, StorageError
from storage.snapshots import load_snapshot, open_snapshot
from tasks.reconstruct.setting import Setting

Role = Literal["held_out", "trained", "unknown"]
Hu = NDArray[np.float32]
Read = Callable[[str], Hu]
_TRUTH = ""  # its id among those of the samples
_SHIFT_MM = 16.0  # boxes are compared at every shift up to this, as in an evaluation
_CANDIDATES = 3
_NAMED = 3  # held-out volumes that a message names
logger = logging.getLogger("prdit.reconstruct")


def truth_of(measurement: Ref, simulated: Simulated, setting: Setting) -> Hu:
    """The volume that was measured, as the model sees it: HU in the window, shape (S, S, S).

    Raises: StorageError: it is not there any more, or its patient was forgotten.
    """
    store, _ = open_snapshot(input_ref(measurement, "snapshot"))
    return _seen(
        store.read_view(simulated.volume_id, setting.view.size, setting.view.edge, setting.view.centre), setting
    )


@dataclass(frozen=True)
class Seen:
    """What a model was trained on.

    Attributes:
        snapshot: of its training; None where its checkpoint names none (an imported one).
        roles: its split; None where that is not there.
    """

    snapshot: Ref | None
    roles: Split | None

    @classmethod
    def by(cls, checkpoint: Ref) -> "Seen":
        """What the checkpoint's record says."""
        inputs = load_provenance(checkpoint).inputs
        split = inputs.get("split")
        roles = None
        if split is not None:
            try:
                roles = Split.load(split.path)
            except StorageError as error:
                logger.warning(
                    "the split of the training cannot be read, so the role of the patient is not known: %s", error
                )
        return cls(inputs.get("snapshot"), roles)

    def role(self, snapshot: Ref, volume_id: str) -> Role:
        """The role of a volume's patient; of a patient who came to the same store later: held out.

        Args:
            snapshot: that lists the volume, perhaps of another store.
            volume_id: which.
        """
        if self.roles is None or self.snapshot is None:
            return "unknown"
        patient = load_snapshot(snapshot).volumes[volume_id].patient_key
        owners = {name: volume.patient_key for name, volume in load_snapshot(self.snapshot).volumes.items()}
        same_store = self.snapshot.path.resolve() == snapshot.path.resolve()
        for role, found in (("train", "trained"), ("val", "held_out")):
            names = set(self.roles.role(role))
            patients = {owners.get(name) for name in names} | set(self.roles.patients.get(role, ()))
            if volume_id in names or (same_store and patient in patients):
                return "trained" if found == "trained" else "held_out"
        return "held_out" if same_store else "unknown"

    def check(self, snapshot: Ref, volume_id: str, *, trained_patients: bool) -> None:
        """Refuse a volume of a training patient, unless it is asked for.

        Raises: InputError: the model has seen the patient.
        """
        if trained_patients or self.role(snapshot, volume_id) != "trained":
            return
        held_out = self.roles.role("val") if self.roles else []
        named = ", ".join(held_out[:_NAMED]) + (", …" if len(held_out) > _NAMED else "")
        raise InputError(
            f"The model was trained on volumes of the patient of {volume_id}, so that its reconstruction would show memory, not "
            f"skill. Take a held-out volume ({named or 'this split has none'}), or set trained_patients: the result then says so."
        )

    def likeness(self, ids: Sequence[str], read: Read, truth: Hu, setting: Setting) -> Likeness | None:
        """Distances of samples and truth to the training volumes nearest to them; None where these are not known.

        Args:
            ids, read: of the samples; one by its id, HU in the window.
            truth: the volume that was measured.
            setting: of the model.
        """
        if self.roles is None or self.snapshot is None or not self.roles.role("train"):
            return None
        try:
            store, _ = open_snapshot(self.snapshot)
        except StorageError as error:
            logger.warning("training volumes are not searched for copies: %s", error)
            return None
        view = setting.view

        def training(name: str) -> Hu:
            return _seen(store.read_view(name, view.size, view.edge, view.centre), setting)

        def drawn(name: str) -> Hu:
            return truth if name == _TRUTH else read(name)

        max_shift = min(round(_SHIFT_MM / view.voxel_mm(setting.spacing_mm)), view.size - 1)
        volumes, references = _known([*ids, _TRUTH], drawn), _known(self.roles.role("train"), training)
        *of_samples, of_truth = (each.distance_hu for each in nearest(volumes, references, max_shift, _CANDIDATES))
        return Likeness(
            to_training=of_samples,
            to_truth=[float(np.sqrt(np.square(read(name) - truth).mean(dtype=np.float64))) for name in ids],
            truth_to_training=of_truth,
            num_training=len(references.ids),
        )


def _seen(hu: Hu, setting: Setting) -> Hu:
    return np.clip(hu, setting.window.lower_hu, setting.window.upper_hu)


def _known(ids: Sequence[str], read: Read) -> Known:
    """Volumes for the search of neighbours; features of no network, as the coarse grid is what tells anatomies apart."""
    coarse = np.stack([coarser(read(name)) for name in ids])
    return Known(tuple(ids), coarse.reshape(len(ids), -1), coarse, read)
