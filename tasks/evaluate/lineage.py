"""Provenance of a report: the chain of references from the samples back to the store, and facts about the store."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from storage.artifacts import Ref, load_provenance
from storage.documents.provenance import Provenance
from storage.documents.split import Split
from storage.errors import StorageError
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_info

PACKAGES = ("prdit", "torch", "numpy", "zarr", "SimpleITK", "pydicom", "prefect", "mlflow", "safetensors", "pydantic")
LUNG_LIMIT = 0.01  # share of the lung a view may cut before the report marks it
_AVERAGED = "averaged"  # role of the checkpoint that `prdit ema` averages, whose other inputs the average keeps


@dataclass(frozen=True)
class Node:
    """One artifact of the chain.

    Attributes:
        title: what it is, in words.
        ref: its reference.
        record: its provenance record; None for a store, or where the record is missing.
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


_TITLES = {"samples": "Samples", "split": "Split", "store": "Volume store"}


def trace(samples: Ref, split: Ref, store: Ref) -> list[Node]:
    """The chain samples → checkpoints → split → store. A missing record becomes a note; it does not fail the report."""
    nodes: list[Node] = []
    ref: Ref | None = samples
    while ref is not None:
        nodes.append(_node(ref))
        ref = _checkpoint_below(nodes[-1])
    nodes.append(_node(split))
    nodes.append(Node(_TITLES["store"], store, note=_other_store_note(nodes, store)))
    return nodes


def _checkpoint_below(node: Node) -> Ref | None:
    inputs = node.record.inputs if node.record else {}
    found = [ref for role, ref in inputs.items() if ref.kind == "checkpoint" and role != _AVERAGED]
    return found[0] if found else None


def _node(ref: Ref) -> Node:
    title = _TITLES.get(ref.kind, ref.kind)
    try:
        if ref.kind == "checkpoint":
            title = f"Checkpoint: {load_info(ref).of_family.title}"
        return Node(title, ref, load_provenance(ref))
    except (StorageError, ValueError) as error:
        return Node(title, ref, note=f"Its record cannot be read ({type(error).__name__}).")


def _other_store_note(nodes: list[Node], store: Ref) -> str:
    others = {node.inputs["store"] for node in nodes if node.inputs.get("store", store.digest) != store.digest}
    if not others:
        return ""
    return (
        "Not the state the model was trained or split on: that was "
        + ", ".join(sorted(others))
        + ". Real figures here are measured on the store as named above."
    )


@dataclass(frozen=True)
class StoreFacts:
    """What the report says about the data.

    Attributes:
        num_volumes: committed volumes.
        fingerprint: of the store.
        spacing_mm: of level 0.
        interpolation: how scans were resampled to the grid.
        roles: (role, volumes, patients) of the split.
        notes: sentences of the split.
        cuts: rows `{volume_id, role, body, lung}`, shares outside the default view, where ingest recorded them; the largest
            lung share first.
        exclusions: rows `{verdict, what, reason, message}`.
    """

    num_volumes: int
    fingerprint: str
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


def store_facts(store: Ref, split: Ref) -> StoreFacts:
    """Read the facts of a store and of a split of it."""
    opened = VolumeStore.open(store.path)
    document = Split.load(split.path)
    role_of = {name: role for role, names in document.roles.items() for name in names}
    cuts = []
    for name in opened.volume_ids():
        cut = opened.commit_record(name).get("source", {}).get("cut")
        if cut:
            cuts.append({"volume_id": name, "role": role_of.get(name, "none"), **cut})
    exclusions = [
        {
            "verdict": str(entry["verdict"]),
            "what": str(entry.get("series_uid") or entry.get("path") or "unnamed"),
            "reason": str(entry.get("reason") or "unknown"),
            "message": str(entry.get("message") or ""),
        }
        for entry in opened.exclusions()
    ]
    return StoreFacts(
        num_volumes=len(opened.volume_ids()),
        fingerprint=store.digest,
        spacing_mm=opened.spacing_mm,
        interpolation=opened.interpolation,
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
