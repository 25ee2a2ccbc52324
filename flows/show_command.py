"""`prdit show`: one volume or one snapshot of a store. Imports of heavy libraries wait until the command needs them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import Json, clear_errors, example, given_path, show_result

_SHOW = (
    example("prdit show .prdit/store 6f1c… --png volume.png")
    + "\n\n`prdit show .prdit/store --snapshot 2` (what an earlier snapshot lists, and how it differs from the one before)"
)
_SCAN = (
    "scan",
    "format",
    "num_slices",
    "num_parts",
    "num_duplicates",
    "spacing_mm",
    "tilt_deg",
    "cut",
    "completeness",
    "recipe",
)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("show", epilog=_SHOW)(show)


def show(
    store: Annotated[Path, typer.Argument(help="Folder of the volume store, or of samples.", parser=given_path)],
    volume: Annotated[
        str | None, typer.Argument(help="Id of a volume, or its beginning (`prdit ls STORE --volumes`).")
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option(help="Number, or beginning of the digest, of the snapshot to show; default: the newest."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            help="Write three planes of the volume in the lung and soft tissue window here.", parser=given_path
        ),
    ] = None,
    thumbnail: Annotated[bool, typer.Option("--thumbnail", help="Draw three planes in this terminal, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show one volume of a store: geometry, attributes, scan, digests, snapshots, role; or, without a volume, one snapshot.

    Only the store is read: it has no names of patients or files. The picture is one of a patient.
    """
    with clear_errors():
        from storage.documents.samples import Samples
        from storage.errors import InputError
        from storage.volume_store import VolumeStore

        opened = VolumeStore.open(store / Samples.load(store).store if (store / Samples.NAME).is_file() else store)
        if volume is None and opened.synthetic is not None:
            ids = opened.volume_ids()
            raise InputError(
                f"{store} holds {len(ids)} generated volume(s) and no snapshots: give the id of one of them"
                + (f", such as {ids[0]}." if ids else ".")
            )
        if volume is None:
            if png is not None or thumbnail:
                raise InputError("--png and --thumbnail draw one volume: give its id (`prdit ls STORE --volumes`).")
            _show_snapshot(opened, snapshot, as_json)
            return
        if snapshot is not None:
            raise InputError(
                "--snapshot shows a whole snapshot, expected without the id of a volume; leave one of them out."
            )
        _show_volume(opened, volume, png, thumbnail, as_json)


def _show_volume(opened: Any, name: str, png: Path | None, thumbnail: bool, as_json: bool) -> None:
    from rich.console import Console

    from storage.errors import InputError
    from storage.files import write_bytes_atomic
    from tasks.show.picture import half_blocks, volume_png
    from tasks.show.volume import find_volume, volume_facts

    terminal = Console(file=sys.stdout, highlight=False)
    if thumbnail and (as_json or terminal.color_system is None):
        raise InputError("--thumbnail draws in colours, which this output has not; write a picture with --png FILE.")
    volume_id = find_volume(opened, name)
    value = volume_facts(opened, volume_id)
    if png is not None:
        write_bytes_atomic(png, volume_png(opened.read_level(volume_id)))
        value["png"] = str(png)
    if thumbnail:
        terminal.print(half_blocks(opened.read_level(volume_id)), end="")
    show_result(value, as_json, lambda: _volume_text(value))


def _show_snapshot(opened: Any, name: str | None, as_json: bool) -> None:
    from tasks.show.snapshot import snapshot_facts

    value = snapshot_facts(opened, name)
    show_result(value, as_json, lambda: _snapshot_text(value))


def _volume_text(value: dict[str, Any]) -> str:
    listed = ", ".join(str(number) for number in value["snapshots"]) or "none"
    state = "listed now" if value["listed"] else "withdrawn" if value["withdrawn"] else "not listed now"
    lines = [
        f"volume {value['volume_id']} of {value['store']}",
        _row("shape (z, y, x)", " × ".join(str(n) for n in value["shape"])),
        _row("spacing (x, y, z)", f"{_sizes(value['spacing_mm'])} mm"),
        _row("size (x, y, z)", f"{_sizes(value['size_mm'])} mm"),
        _row("origin (LPS)", f"{', '.join(f'{v:g}' for v in value['origin_mm'])} mm"),
        _row("on disk", f"{value['num_bytes'] / 1e6:.1f} MB in {value['folder']}"),
        _row("snapshots", f"{listed} ({state})"),
    ]
    if value["patient_key"] is not None:
        lines.append(
            _row("patient", value["patient_key"] if value["patient_known"] else "unknown: counts as one of its own")
        )
        roles = ", ".join(f"{role} (split {name})" for name, role in value["roles"].items())
        lines.append(_row("role", roles or "none yet"))
    lines += _section("attributes", value["attributes"]) + _section("labels", value["labels"])
    if scan := value["scan"]:
        lines += _section("scan", {name: scan[name] for name in _SCAN})
        lines += [_row("  note", note) for note in scan["notes"]]
        lines += [_row("  files", f"sha256 {scan['files_digest']}"), _row("  pixels", scan["pixels"] or "not recorded")]
    lines.append("digests of the levels (SHA-256 of the values)")
    for level, array in value["arrays"].items():
        lines.append(_row(f"  level {level}", f"{array['sha256']}  {' × '.join(str(n) for n in array['shape'])}"))
    return "\n".join(lines + ([_row("picture", value["png"])] if "png" in value else []))


def _snapshot_text(value: dict[str, Any]) -> str:
    number = "not in the history" if value["number"] is None else f"number {value['number']}, {value['created']}"
    lines = [f"snapshot {value['snapshot']} of {value['store']} ({number})"]
    unknown = f", {value['num_unknown_patients']} of them unknown" if value["num_unknown_patients"] else ""
    lines.append(_row("volumes", f"{value['num_volumes']} of {value['num_patients']} patients{unknown}"))
    if value["forgotten"]:
        lines.append(_row("forgotten", f"{len(value['forgotten'])} more volumes, of patients who were forgotten since"))
    if value["change"]:
        lines.append(_row("change", value["change"]))
    if before := value["before"]:
        names = ("new", "left_out", "with_another_patient", "with_other_labels")
        counts = [f"{len(before[name])} {name.replace('_', ' ')}" for name in names if before[name]]
        lines.append(_row(f"since number {before['number']}", ", ".join(counts) or "the same volumes"))
    lines += [_row(f"size {axis}", f"{_range(facts)} mm") for axis, facts in value["size_mm"].items()]
    for title in ("attributes", "labels"):
        lines += _section(title, {name: _summary_text(facts) for name, facts in value[title].items()})
    return "\n".join(lines)


def _summary_text(facts: dict[str, Any]) -> str:
    if "counts" in facts:
        parts = [f"{word} {count}" for word, count in facts["counts"].items()]
        text = ", ".join(parts + ([f"{facts['num_others']} other values"] if facts["num_others"] else []))
    else:
        text = _range(facts)
    return text + (f"; {facts['missing']} without" if facts["missing"] else "")


def _range(facts: dict[str, float]) -> str:
    return f"{facts['min']:g} to {facts['max']:g}, median {facts['median']:g}"


def _sizes(values: list[float]) -> str:
    return " × ".join(f"{v:g}" for v in values)


def _section(title: str, values: dict[str, Any]) -> list[str]:
    if not values:
        return []
    return [
        title,
        *(_row(f"  {name}", each if isinstance(each, str) else json.dumps(each)) for name, each in values.items()),
    ]


def _row(name: str, text: str) -> str:
    return f"{name:<24} {text}"
