"""The frozen reference: the held-out volumes and noises on which champion and challenger are compared, the same for all of them.

Splits are sticky by patient, so a volume of the reference does not become a training volume while the split's settings stay. Where
they are changed, what champion or challenger were trained on leaves the reference.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from storage.artifacts import Ref, input_ref
from storage.documents.reference import Reference
from storage.documents.split import Split
from storage.errors import InputError, StorageError
from storage.numbered import Numbered
from storage.snapshots import load_snapshot
from storage.volume_store import VolumeStore
from tasks.retrain.policy import RetrainPolicy

FOLDER = "reference"
_SEED = 20_270
logger = logging.getLogger("prdit.retrain")


def references(workdir: Path) -> Numbered[Reference]:
    """The references of a working folder; the highest number counts."""
    return Numbered(workdir / FOLDER, Reference)


def frozen_reference(
    workdir: Path, snapshot: Ref, split: Ref, policy: RetrainPolicy, champion: Ref | None = None
) -> tuple[int, Reference]:
    """The reference that counts, with its number.

    It is made of the held-out volumes of a split, and stays from then on. A new number is made only while it has fewer volumes than
    the policy asks for and more are held out by now, where the policy asks for another number of noises, or where some leave it:
    those that are not in the store or not listed any more, and those that champion or challenger were trained on.

    Args:
        workdir: working folder.
        snapshot, split: of the challenger's training.
        policy: number of volumes and noises.
        champion: checkpoint that the challenger is compared with; None: there is none.
    Raises: StorageError: the reference or the snapshot is damaged.
    """
    kept = references(workdir)
    store = VolumeStore.open(snapshot.path)
    held_out = _held_out(snapshot, split, champion)

    def change(old: Reference | None) -> Reference:
        there = set(store.volume_ids())
        volumes = {name: key for name, key in old.volumes.items() if name in there} if old else {}
        whys = []
        if old and len(volumes) < len(old.volumes):
            whys.append(f"{len(old.volumes) - len(volumes)} volume(s) are not in the store any more")
        if unusable := volumes.keys() - held_out.keys():
            whys.append(f"{len(unusable)} volume(s) are not listed any more, or not held out")
        volumes = {name: held_out[name] for name in sorted(volumes.keys() - unusable)}
        if len(volumes) < policy.min_reference_volumes and held_out.keys() - volumes.keys():
            volumes |= held_out
            whys.append("more volumes are held out by now" if old else "the first")
        if old and old.num_noises != policy.num_noises:
            whys.append(f"the policy asks for {policy.num_noises} noises per volume")
        if old and not whys:
            return old
        return Reference(
            volumes=dict(sorted(volumes.items())),
            snapshot=snapshot.digest,
            num_noises=policy.num_noises,
            seed=_SEED,
            why="; ".join(whys) or "the first",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    reference = kept.update(change)
    return kept.numbers()[-1], reference


def _held_out(snapshot: Ref, split: Ref, champion: Ref | None) -> dict[str, str]:
    """Patient key by id of the listed volumes that a split holds out, and that a champion was not trained on."""
    listed, roles = load_snapshot(snapshot).volumes, Split.load(split.path)
    held_out = {name: listed[name].patient_key for name in roles.role("val") if name in listed}
    trained = {*roles.role("train"), *_trained_on(champion)}
    patients = {listed[name].patient_key for name in trained if name in listed}
    return {name: key for name, key in held_out.items() if name not in trained and key not in patients}


def _trained_on(champion: Ref | None) -> list[str]:
    """Ids of the volumes that a champion was trained on; none where that is not known any more."""
    if champion is None:
        return []
    try:
        return Split.load(input_ref(champion, "split").path).role("train")
    except (InputError, StorageError) as error:
        logger.warning("which volumes the champion was trained on is not known: %s", error)
        return []


def reference_snapshot(store: Path, reference: Reference) -> Ref:
    """The snapshot that a reference was taken of, in the store at a path."""
    return Ref(kind="snapshot", uri=str(store.resolve()), digest=reference.snapshot)
