"""`prdit ls`, `verify`, `qc`, `remove`: what a store lists, whether it is whole, how its volumes look, and what is left out."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import Json, clear_errors, example, given_path, show_result
from flows.faults import say_error

_Store = Annotated[Path, typer.Argument(help="Folder of the volume store.", parser=given_path)]
_LS = (
    example("prdit ls .prdit/store")
    + "\n\n`prdit ls .prdit/store --volumes --snapshot 2` (the volumes of an earlier snapshot)"
)
_REMOVE = example("prdit remove .prdit/store 6f1c… 0a97…") + "\n\n`prdit remove .prdit/store 6f1c… --undo`"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("ls", epilog=_LS)(ls)
    app.command("verify", epilog=example("prdit verify .prdit/store"))(verify)
    app.command("remove", epilog=_REMOVE)(remove)
    app.command("qc", epilog=example("prdit qc .prdit/store"))(qc)


def ls(
    store: _Store = Path(".prdit/store"),
    volumes: Annotated[bool, typer.Option("--volumes", help="List the volumes of a snapshot.")] = False,
    snapshot: Annotated[
        str | None, typer.Option(help="Number, or beginning of the digest, of the snapshot; default: the newest.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the snapshots of a volume store, newest last, or the volumes of one.

    A run works on one snapshot: `prdit run --set snapshot=NUMBER` works on an earlier one.
    """
    with clear_errors():
        from storage.snapshots import find, history, load_snapshot, newest, snapshot_ref
        from storage.volume_store import VolumeStore

        opened = VolumeStore.open(store)
        if not volumes and snapshot is None:
            steps = history(store)
            entries = [{"number": number, **steps.read(number).to_json()} for number in steps.numbers()]
            for entry in entries:
                listed_then = load_snapshot(snapshot_ref(store, entry["snapshot"]))
                entry |= {"forgotten": len(listed_then.forgotten), "synthetic": listed_then.num_synthetic}
            value: dict[str, Any] = {"store": str(store), "grid": opened.grid.model_dump(), "snapshots": entries}
            show_result(value, as_json, lambda: _history_text(value))
            return
        ref = find(opened, snapshot) if snapshot is not None else newest(opened)
        found = load_snapshot(ref)
        listed = {name: volume.model_dump(mode="json") for name, volume in found.volumes.items()}
        value = {
            "snapshot": ref.digest,
            "volumes": listed,
            "forgotten": list(found.forgotten),
            "synthetic": found.num_synthetic,
        }
        show_result(value, as_json, lambda: _volumes_text(ref.digest, listed, found.forgotten, found.num_synthetic))


def _history_text(value: dict[str, Any]) -> str:
    grid = value["grid"]
    lines = [f"{value['store']}: {grid['spacing_mm']:g} mm, {grid['num_levels']} levels, {grid['interpolation']}"]
    lines.append(f"{'number':>6}  {'created (UTC)':<25}  {'snapshot':<12}  {'volumes':>7}  {'patients':>8}  change")
    for entry in value["snapshots"]:
        digest = entry["snapshot"].removeprefix("sha256:")[:12]
        counts = f"{entry['num_volumes']:>7}  {entry['num_patients']:>8}"
        change = entry["change"] + _gone(entry["forgotten"]) + _synthetic(entry["synthetic"])
        lines.append(f"{entry['number']:>6}  {entry['created']:<25}  {digest}  {counts}  {change}")
    if value["snapshots"] and (withdrawn := value["snapshots"][-1]["withdrawn"]):
        lines.append(f"withdrawn: {', '.join(withdrawn)}")
    return "\n".join(lines)


def _gone(number: int) -> str:
    return f"; {number} of its volumes forgotten since" if number else ""


def _synthetic(number: int) -> str:
    return f"; {number} of its volumes synthetic" if number else ""


def _volumes_text(digest: str, listed: dict[str, dict[str, Any]], forgotten: Sequence[str], num_synthetic: int) -> str:
    lines = [
        f"{digest}: {len(listed)} volumes{_synthetic(num_synthetic)}",
        f"{'volume':<32}  {'patient':<8}  {'shape (z, y, x)':<15}  labels",
    ]
    for name, volume in listed.items():
        named = [f"{key}={text}" for key, text in volume["labels"].items()]
        labels = ", ".join(["synthetic", *named] if volume["attributes"].get("synthetic") is True else named)
        shape = " × ".join(str(n) for n in volume["shape"])
        patient = volume["patient_key"][:8] if volume["patient_known"] else "unknown"
        lines.append(f"{name:<32}  {patient:<8}  {shape:<15}  {labels}")
    lines += [f"{name:<32}  of a patient who was forgotten" for name in forgotten]
    return "\n".join(lines)


def verify(
    store: _Store = Path(".prdit/store"),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: by cores and memory.")] = None,
    as_json: Json = False,
) -> None:
    """Check every byte of a volume store, and its snapshots against its volumes. Exit 1 when something is damaged or lost."""
    with clear_errors():
        from dataclasses import asdict

        from tasks.maintain.verify import verify_store
        from tasks.run.progress import show_progress

        with show_progress("verify") as progress:
            found, notes = verify_store(store, num_workers=workers, progress=progress)
        value = {"store": str(store), "findings": [asdict(finding) for finding in found], "notes": notes}
        show_result(value, as_json, lambda: _findings_text(value))
        if found:
            repair = (
                " Repair what its source still has, with the configuration of its ingest: "
                f"prdit ingest SOURCE --store {shlex.quote(str(store))} --repair"
            )
            say_error(
                f"{len(found)} finding(s) in {store}.{repair if {f.kind for f in found} - {'patient key'} else ''}"
            )
            raise typer.Exit(1)


def _findings_text(value: dict[str, Any]) -> str:
    lines = [f"{finding['kind']} {finding['name']}: {finding['message']}" for finding in value["findings"]]
    lines += [f"note: {note}" for note in value["notes"]]
    return "\n".join(lines or [f"{value['store']}: every byte is as it was committed"])


def qc(store: _Store = Path(".prdit/store"), as_json: Json = False) -> None:
    """Write the quality page of a store again: its volumes with pictures, and what was left out with its reason.

    It lies beside the store, as `<store>.ingests/qc.html`: it shows patients' images and names files.
    """
    with clear_errors():
        from storage.volume_store import VolumeStore
        from tasks.ingest.qc import write_page
        from tasks.run.progress import show_progress

        with show_progress("qc") as progress:
            page = write_page(VolumeStore.open(store), progress)
        show_result({"store": str(store), "qc": str(page)}, as_json, lambda: str(page))


def remove(
    store: _Store,
    volumes: Annotated[list[str], typer.Argument(help="Ids of the volumes (`prdit ls STORE --volumes`).")],
    undo: Annotated[bool, typer.Option("--undo", help="Let the next ingest of their source list them again.")] = False,
    as_json: Json = False,
) -> None:
    """Withdraw volumes: the next snapshot and all later ones leave them out, whatever is ingested.

    No volume is deleted: earlier snapshots still have them, and runs on them can be repeated. What evaluations and trainings keep
    of them beside the store (`<store>.features`, `<store>.encoded`) is deleted; a run on an earlier snapshot keeps it again: remove
    them again.
    """
    with clear_errors():
        from storage.encoded import forget_encoded
        from storage.snapshots import allow_again, withdraw
        from storage.volume_store import VolumeStore
        from tasks.evaluate.cache import forget_features

        opened = VolumeStore.open(store)
        if not undo:
            forget_features(opened, volumes)
            forget_encoded(opened, volumes)
        ref = (allow_again if undo else withdraw)(opened, volumes)
        what = "may be listed again, by the next ingest of their source" if undo else "withdrawn"
        show_result(
            {"snapshot": ref.digest, "volumes": volumes, "withdrawn": not undo},
            as_json,
            lambda: f"{len(set(volumes))} volume(s) {what}; snapshot {ref.digest}",
        )
