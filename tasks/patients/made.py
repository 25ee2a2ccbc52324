"""What was made from what: every provenance record of the working folders, followed back and forward."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storage.artifacts import PROVENANCE, SCRATCH, Ref
from storage.documents.pending import Pending
from storage.documents.provenance import Provenance
from storage.documents.split import Split
from storage.errors import StorageError
from storage.snapshots import load_snapshot
from tasks.prune.remove import LINEAGE

TRAINED, FROM_TRAINED = "trained on it", "made from a model that was"
HELD_OUT, MEASURED = "held out from it", "measured on it"
SHOWS = "shows it"  # a measurement of one of the volumes, samples that follow its mask, and what was made of these
_VOLUME_OF = {"measurement": "volume_id", "samples": "mask_volume"}  # setting that names a volume which they show
_LEARNED = (TRAINED, FROM_TRAINED)
logger = logging.getLogger("prdit.patients")


@dataclass(frozen=True)
class Made:
    """One artifact, as its record says.

    Attributes:
        kind, digest, stage: of it.
        inputs: references by role; the uri of one that only MLflow knows is empty.
        uri: its directory; empty where only MLflow has its record.
        created: UTC time.
        forgotten: sentence of its record, where a patient was forgotten whose volumes it was made from.
        mlflow_run_id: of the run that made it.
        volume_id: the volume that was measured, of a simulated measurement, or whose mask samples were drawn for; else empty.
    """

    kind: str
    digest: str
    stage: str
    inputs: Mapping[str, Ref] = field(default_factory=dict)
    uri: str = ""
    created: str = ""
    forgotten: str = ""
    mlflow_run_id: str = ""
    volume_id: str = ""

    @property
    def ref(self) -> Ref:
        """Its reference."""
        return Ref(kind=self.kind, uri=self.uri, digest=self.digest)


@dataclass(frozen=True)
class Affected:
    """An artifact that a patient's volumes went into, and how."""

    made: Made
    how: str

    @property
    def learned(self) -> bool:
        """Whether it is a model that was trained on the volumes, or was drawn from one, or shows what they show."""
        return self.shows or (self.how in _LEARNED and self.made.kind in ("checkpoint", "samples"))

    @property
    def shows(self) -> bool:
        """Whether it shows one of the volumes, so that it has to be deleted: a measurement or a mask of it, or a reconstruction."""
        return self.how == SHOWS


def made_in(workdir: Path) -> list[Made]:
    """Every artifact below a working folder, and checkpoints that were there; of records that cannot be read there is a warning."""
    found = []
    removed = workdir / LINEAGE  # records of checkpoints that retention removed
    for path in sorted({*workdir.glob(f"*/{PROVENANCE}"), *workdir.glob(f"*/*/{PROVENANCE}"), *removed.glob("*.json")}):
        try:
            record = Provenance.read(path)
        except StorageError as error:
            logger.warning("%s", error)
            continue
        found.append(
            Made(
                record.kind,
                record.digest,
                record.stage,
                record.inputs,
                "" if path.parent == removed else str(path.parent.resolve()),
                record.created,
                record.forgotten,
                record.mlflow_run_id or "",
                str(record.config.get(_VOLUME_OF.get(record.kind, ""), "")),
            )
        )
    return found


def unfinished_in(workdir: Path) -> Iterator[tuple[Path, Pending]]:
    """Directories of stages without an artifact, with what the run that works or worked there reads."""
    for path in sorted(workdir.glob(f"*/*/{SCRATCH}/{Pending.NAME}")):
        directory = path.parents[1]
        if not (directory / PROVENANCE).exists():
            with suppress(StorageError):
                yield directory, Pending.read(path)


def volumes_shown(pending: Pending) -> set[str]:
    """Volumes that an unfinished stage's settings name."""
    return {str(pending.config[name]) for name in _VOLUME_OF.values() if pending.config.get(name)}


def roles_of(inputs: Mapping[str, Ref], made: Mapping[str, Made]) -> dict[str, list[str]] | None:
    """Volume ids by role of what has a split and a snapshot among its inputs; None where it has no snapshot.

    Where the split is gone, or was made again since, every volume that the snapshot listed counts as training volume.
    """
    snapshot, split = inputs.get("snapshot"), inputs.get("split")
    if split is not None and split.digest in made:
        with suppress(StorageError):
            return dict(Split.load(Path(made[split.digest].uri)).roles)
    if snapshot is None:
        return None
    listed = listed_by(snapshot)
    return None if listed is None else {"train": listed}


def listed_by(snapshot: Ref) -> list[str] | None:
    """Every volume that a snapshot listed, forgotten ones among them; None where it cannot be read."""
    try:
        found = load_snapshot(snapshot)
    except (StorageError, ValueError) as error:
        logger.warning("%s", error)
        return None
    return sorted({*found.volumes, *found.forgotten})


def by_digest(records: Iterable[Made]) -> dict[str, Made]:
    """Artifacts by digest; those that are on this disk first."""
    found: dict[str, Made] = {}
    for one in records:
        if not found.get(one.digest, one).uri:
            found[one.digest] = one
        found.setdefault(one.digest, one)
    return found


def affected_by(volume_ids: Collection[str], records: Iterable[Made], store: Path) -> list[Affected]:
    """What a patient's volumes went into, however far, in the order of its making.

    Args:
        volume_ids: of the patient.
        records: every artifact that is known.
        store: where snapshots are, whose place is not known to MLflow.
    """
    made = by_digest(records)
    wanted, how = set(volume_ids), dict[str, str]()

    def direct(one: Made) -> str:
        if one.volume_id in wanted:
            return SHOWS
        if one.kind == "measurement":  # of one volume, whatever else its snapshot lists
            return ""
        if one.kind == "split":
            roles = roles_of({"split": one.ref}, made) if one.uri else None
        else:
            inputs = {
                role: ref if ref.uri else ref.model_copy(update={"uri": str(store)}) for role, ref in one.inputs.items()
            }
            roles = roles_of(inputs, made)
        if roles is None:
            return ""
        role = next((name for name, names in roles.items() if wanted.intersection(names)), "")
        if one.kind == "checkpoint" or not role:
            return {"train": TRAINED, "": ""}.get(role, HELD_OUT)
        return MEASURED if one.kind == "report" else role

    for one in made.values():
        if found := direct(one):
            how[one.digest] = found
    changed = True
    while changed:
        changed = False
        for one in made.values():
            before = how.get(one.digest)
            learned = any(
                how.get(ref.digest) in _LEARNED and ref.kind in ("checkpoint", "samples") for ref in one.inputs.values()
            )
            if any(how.get(ref.digest) == SHOWS for ref in one.inputs.values()) and before != SHOWS:
                how[one.digest], changed = SHOWS, True
            elif learned and before not in (*_LEARNED, SHOWS):
                how[one.digest], changed = FROM_TRAINED, True
    order = sorted(how, key=lambda digest: (made[digest].created, digest))
    return [Affected(made[digest], how[digest]) for digest in order]
