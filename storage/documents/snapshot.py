"""`snapshots/<hash>.json` and `history/<number>.json` of a volume store: what a run works on, and which of them is newest."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from storage.documents.document import Document, Part
from storage.documents.volume import Grid
from storage.files import sha256_json
from storage.geometry import Int3
from storage.sources.attributes import SYNTHETIC

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class SnapshotVolume(Part):
    """One volume as a snapshot lists it.

    Attributes:
        patient_key: HMAC of the PatientID; of the scan's id where there is none.
        patient_known: whether there was a PatientID (or a row in `patients.csv`).
        shape: of level 0 (z, y, x).
        attributes: allow-listed facts of the scan.
        labels: of `labels.csv`, by column.
    """

    patient_key: str
    patient_known: bool
    shape: Int3
    attributes: dict[str, Any] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Any]:
        """Attributes and labels together, as one row of a table."""
        return {**self.attributes, **self.labels}

    @property
    def synthetic(self) -> bool:
        """Whether the volume's file said that a model generated it."""
        return self.attributes.get(SYNTHETIC) is True


class Snapshot(Document):
    """An immutable list of volumes: all that split, training and evaluation see of a store.

    Forgetting a patient takes the patient's entries out of the file; it keeps its name, and says so.

    Attributes:
        grid: of the store.
        volumes: by volume id.
        forgotten: ids of volumes that it listed, of patients who were forgotten since; their entries are gone.
        listed: digest of the whole list, with those entries; empty where none is gone.
        seal: hash of what is left; empty where none is gone.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "snapshot of a volume store"
    REMEDY: ClassVar[str] = (
        "`prdit ls STORE` lists the snapshots; `prdit ingest SOURCE --store STORE --repair` makes a new one."
    )

    grid: Grid
    volumes: dict[str, SnapshotVolume]
    forgotten: tuple[str, ...] = ()
    listed: str = ""
    seal: str = ""

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the content, as it was written first: equal lists have equal digests on any machine."""
        own = self._hash()
        return self.listed if self.forgotten and self.seal == own else own

    def without(self, volume_ids: Collection[str]) -> "Snapshot":
        """The same snapshot, by its digest, without what it says of volumes; itself where it lists none of them."""
        gone = self.volumes.keys() & set(volume_ids)
        if not gone:
            return self
        kept = {name: volume for name, volume in self.volumes.items() if name not in gone}
        names = tuple(sorted({*self.forgotten, *gone}))
        changes = {"volumes": kept, "forgotten": names, "listed": self.digest, "seal": ""}
        bare = self.model_copy(update=changes)
        return bare.model_copy(update={"seal": bare._hash()})

    def _hash(self) -> str:
        return "sha256:" + sha256_json({key: value for key, value in self.to_json().items() if key != "seal"})

    def to_json(self) -> dict[str, Any]:
        """The content of the file; a list of which nothing is gone has nothing to say of that."""
        values = super().to_json()
        if not self.forgotten:
            for key in ("forgotten", "listed", "seal"):
                del values[key]
        return values

    @property
    def num_synthetic(self) -> int:
        """Volumes whose files said that a model generated them (`ingest.synthetic: accept`)."""
        return sum(volume.synthetic for volume in self.volumes.values())

    @property
    def patients(self) -> dict[str, list[str]]:
        """Volume ids by patient key, both sorted."""
        found: dict[str, list[str]] = {}
        for volume_id, volume in sorted(self.volumes.items()):
            found.setdefault(volume.patient_key, []).append(volume_id)
        return dict(sorted(found.items()))


class HistoryEntry(Document):
    """One step of a store's history; the entry of the highest number is what the store is now.

    Attributes:
        snapshot: digest of the snapshot.
        change: what made it, in a few words.
        created: UTC time.
        num_volumes, num_patients: of the snapshot.
        withdrawn: ids of volumes that are not to be listed again.
        patients_by, labels_by: volume id -> opaque id of the source whose table gave its patient, or its labels.
        identified_by: volume id -> opaque id of the source whose files gave its patient.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "entry of a volume store's history"
    REMEDY: ClassVar[str] = "`prdit ingest SOURCE --store STORE --repair` sets it aside."

    snapshot: Digest
    change: str
    created: str
    num_volumes: int
    num_patients: int
    withdrawn: tuple[str, ...] = ()
    patients_by: dict[str, str] = Field(default_factory=dict)
    labels_by: dict[str, str] = Field(default_factory=dict)
    identified_by: dict[str, str] = Field(default_factory=dict)


Role = Literal["train", "val"]


class Roles(Document):
    """`roles/<name>/<number>.json`: the role of every patient that a split has ever seen; the highest number counts."""

    FORMAT: ClassVar[int] = 2
    WHAT: ClassVar[str] = "ledger of roles"
    REMEDY: ClassVar[str] = "Restore it from a backup: without it patients could change roles."

    roles: dict[str, Role]
