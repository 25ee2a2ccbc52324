"""Provenance of a report: the chain of references from the samples back to the snapshot, and facts about the data."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from storage.artifacts import Ref, load_provenance
from storage.documents.provenance import Provenance
from storage.documents.split import Split
from storage.errors import StorageError
from storage.snapshots import open_snapshot
from tasks.model.checkpoint import load_info

PACKAGES = ("prdit", "torch", "numpy", "zarr", "SimpleITK", "pydicom", "prefect", "mlflow", "safetensors", "pydantic")
LUNG_LIMIT = 0.01  # share of the lung a view may cut before the report marks it
# Roles of checkpoints beside the chain: that which `prdit ema` averages (the average keeps its other inputs), and that with whose
# weights a retraining began.
_BESIDE = ("averaged", "initial")


@dataclass(frozen=True)
class Node:
    """One artifact of the chain.

    Attributes:
        title: what it is, in words.
        ref: its reference.
        record: its provenance record; None for a snapshot, or where the record is missing.
        note: a sentence when something about it must be known.
    """

    title: str
    ref: Ref
    record: Provenance | None = None
    note: str = ""

    @property
    def inputs(self) -> dict[str, str]:
        """Digest by role of what it was made from."""
        return {role: ref.digest for role, ref in self.record.inputs.items()} if self.record else {}


_TITLES = {"samples": "Samples", "split": "Split", "snapshot": "Snapshot of the volume store"}


def trace(samples: Ref, split: Ref, snapshot: Ref) -> list[Node]:
    """The chain samples → checkpoints → split → snapshot. A missing record becomes a note; it does not fail the report."""
    nodes: list[Node] = []
    ref: Ref | None = samples
    while ref is not None:
        nodes.append(_node(ref))
        ref = _checkpoint_below(nodes[-1])
    nodes.append(_node(split))
    nodes.append(Node(_TITLES["snapshot"], snapshot, note=_other_snapshot_note(nodes, snapshot)))
    return nodes


def _checkpoint_below(node: Node) -> Ref | None:
    inputs = node.record.inputs if node.record else {}
    found = [ref for role, ref in inputs.items() if ref.kind == "checkpoint" and role not in _BESIDE]
    return found[0] if found else None


def _node(ref: Ref) -> Node:
    title = _TITLES.get(ref.kind, ref.kind)
    try:
        if ref.kind == "checkpoint":
            title = f"Checkpoint: {load_info(ref).of_family.title}"
        return Node(title, ref, load_provenance(ref))
    except (StorageError, ValueError) as error:
        return Node(title, ref, note=f"Its record cannot be read ({type(error).__name__}).")


def _other_snapshot_note(nodes: list[Node], snapshot: Ref) -> str:
    recorded = {node.inputs.get("snapshot", snapshot.digest) for node in nodes}
    others = ", ".join(sorted(recorded - {snapshot.digest}))
    if not others:
        return ""
    return (
        f"Not the snapshot the model was trained or split on: that was {others}. Real figures here are measured on the "
        "snapshot named above."
    )


@dataclass(frozen=True)
class StoreFacts:
    """What the report says about the data.

    Attributes:
        num_volumes: of the snapshot.
        snapshot: its digest.
        spacing_mm: of level 0.
        interpolation: how scans were resampled to the grid.
        roles: (role, volumes, patients) of the split.
        notes: sentences of the split.
        cuts: rows `{volume_id, role, body, lung}`, shares outside the default view, where ingest recorded them; the largest
            lung share first.
        exclusions: rows `{verdict, what, reason, message}`.
    """

    num_volumes: int
    snapshot: str
    spacing_mm: float
    interpolation: str
    roles: list[tuple[str, int, int]]
    notes: list[str]
    cuts: list[dict[str, Any]]
    exclusions: list[dict[str, str]]

    @property
    def num_lung_cut(self) -> int:
        """Volumes whose lungs the default view cuts by more than `LUNG_LIMIT`."""
        return sum(row["lung"] > LUNG_LIMIT for row in self.cuts)


def store_facts(snapshot: Ref, split: Ref) -> StoreFacts:
    """Read the facts of a snapshot and of a split of it; exclusions are those of the last ingests into its store."""
    store, listed = open_snapshot(snapshot)
    document = Split.load(split.path)
    role_of = {name: role for role, names in document.roles.items() for name in names}
    cuts = []
    for name in listed.volumes:
        scan = store.commit_record(name).scan
        if scan and scan.cut:
            cuts.append({"volume_id": name, "role": role_of.get(name, "none"), **scan.cut})
    exclusions = [
        {
            "verdict": str(entry["verdict"]),
            "what": str(entry.get("series_uid") or entry.get("path") or "unnamed"),
            "reason": str(entry.get("reason") or "unknown"),
            "message": str(entry.get("message") or ""),
        }
        for entry in store.exclusions()
    ]
    return StoreFacts(
        num_volumes=len(listed.volumes),
        snapshot=snapshot.digest,
        spacing_mm=store.spacing_mm,
        interpolation=store.grid.interpolation,
        roles=[(role, len(names), len(document.patients.get(role, []))) for role, names in document.roles.items()],
        notes=document.notes,
        cuts=sorted(cuts, key=lambda row: (-row["lung"], -row["body"], row["volume_id"])),
        exclusions=exclusions,
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
