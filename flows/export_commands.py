"""`prdit export` and `prdit send`: volumes for other programs, as files or to a DICOM node."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import Json, Workdir, clear_errors, example, find_ref, given_path, show_result, stop_as_ctrl_c
from storage.places import as_folder, as_place

_Store = Annotated[
    str, typer.Argument(help="Volume store; or samples: their directory, their store, or a reference as JSON.")
]
_Volumes = Annotated[
    list[str] | None, typer.Argument(help="Ids of the volumes (`prdit ls STORE --volumes`; samples: samples.json).")
]
_All = Annotated[bool, typer.Option("--all", help="Every volume of the snapshot, or of the samples.")]
_Patient = Annotated[
    list[str] | None,
    typer.Option(
        "--patient", metavar="KEY", help="Volumes of a patient, by the beginning of the key; may be repeated."
    ),
]
_Snapshot = Annotated[
    str | None, typer.Option(help="Number, or beginning of the digest, of the snapshot; default: the newest.")
]
_Level = Annotated[int, typer.Option(min=0, help="Level of the pyramid; 0 is the full resolution, 1 has half of it.")]
_EXPORT = (
    example("prdit export .prdit/store out --format dicom --all")
    + "\n\n`prdit export .prdit/work/sample/KEY out generated-00000` (one generated volume, as NIfTI)"
)
_SEND = (
    example("prdit send .prdit/work/sample/KEY ORTHANC@127.0.0.1:4242 --all")
    + "\n\n`prdit send out ORTHANC@127.0.0.1:4242` (a folder of `prdit export --format dicom`)"
)


def register(app: typer.Typer) -> None:
    """Add both commands to the command line."""
    app.command("export", epilog=_EXPORT)(export)
    app.command("send", epilog=_SEND)(send)


def export(
    store: _Store,
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not exist.", parser=given_path)],
    volumes: _Volumes = None,
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="nifti|dicom|ome-zarr", help="Format of the files.")
    ] = "nifti",
    everything: _All = False,
    patient: _Patient = None,
    snapshot: _Snapshot = None,
    level: _Level = 0,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Write volumes of a store, or samples, as NIfTI, DICOM series or OME-Zarr, with a list of them in `export.json`.

    A folder is there whole or not at all. Generated volumes are marked as synthetic in every format; docs/export.md says what is
    written. Exported scans have patient keys, never names: they are still images of persons.
    """
    with clear_errors():
        from tasks.export.folder import export as run_export
        from tasks.run.progress import show_progress

        stop_as_ctrl_c()
        chosen = _selected(store, volumes, everything, patient, snapshot, level, workdir)
        with show_progress("export") as progress:
            made = run_export(chosen, format, folder, progress)
        number = len(made.volumes)
        value = {"folder": str(folder), **made.to_json()}
        synthetic = sum(volume.synthetic for volume in made.volumes)
        text = f"{number} volume(s) as {made.format} in {folder}" + (
            f", {synthetic} of them synthetic" * bool(synthetic)
        )
        show_result(value, as_json, lambda: text)


def send(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of `prdit export --format dicom`; or volume store, or samples, as for `prdit export`."
        ),
    ],
    node: Annotated[str, typer.Argument(metavar="TITLE@HOST:PORT", help="The DICOM node, by AE title and address.")],
    volumes: _Volumes = None,
    everything: _All = False,
    patient: _Patient = None,
    snapshot: _Snapshot = None,
    level: _Level = 0,
    calling: Annotated[str, typer.Option(help="Our own AE title.")] = "PRDIT",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer of the node.")] = 60.0,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Send volumes to a DICOM node (C-STORE), as CT Image Storage; it must say of every image that it is stored.

    Sending twice does no harm: an image has the same UIDs each time. The connection is not encrypted.
    """
    with clear_errors():
        from tasks.export.send import Node
        from tasks.export.send import send as run_send
        from tasks.run.progress import show_progress

        stop_as_ctrl_c()
        to = Node.parse(node, calling, timeout)
        sendables = _sendables(source, volumes, everything, patient, snapshot, level, workdir)
        with show_progress("send") as progress:
            sent = run_send(sendables, to, progress)
        value = {
            "node": str(to),
            "volumes": sent.volumes,
            "images": sent.num_images,
            "warnings": dict(sorted(sent.warnings.items())),
        }
        lines = [f"{len(sent.volumes)} volume(s), {sent.num_images} image(s) stored by {to}"]
        lines += [f"{number} of them with {remark}" for remark, number in sorted(sent.warnings.items())]
        show_result(value, as_json, lambda: "\n".join(lines))


def _sendables(
    source: str,
    volumes: list[str] | None,
    everything: bool,
    patient: list[str] | None,
    snapshot: str | None,
    level: int,
    workdir: Path | None,
) -> Any:
    """What to send: the volumes of an exported folder, or of a store."""
    from storage.documents.export import Export
    from storage.errors import InputError
    from tasks.export.sendable import of_folder, of_selection

    if source.lstrip().startswith("{") or not (as_place(source) / Export.NAME).is_file():
        return of_selection(_selected(source, volumes, everything, patient, snapshot, level, workdir))
    if patient or snapshot or level:
        raise InputError(
            f"{source} is an exported folder: --patient, --snapshot and --level were chosen when it was made."
        )
    return of_folder(as_folder(source, "The exported folder"), volumes or ())


def _selected(
    store: str,
    volumes: list[str] | None,
    everything: bool,
    patient: list[str] | None,
    snapshot: str | None,
    level: int,
    workdir: Path | None,
) -> Any:
    """The volumes that the options name."""
    from storage.artifacts import committed_ref
    from storage.documents.samples import Samples
    from storage.errors import InputError
    from storage.volume_store import VolumeStore
    from tasks.export.selection import select

    given_ref = store.lstrip().startswith("{")
    path = Path() if given_ref else as_place(store)
    if given_ref or (path.is_dir() and committed_ref(path)):
        ref = find_ref(store, workdir)
        if ref.kind == "samples":
            path = ref.path / Samples.load(ref.path).store
        elif ref.kind == "snapshot":
            path, snapshot = ref.path, snapshot or ref.digest
        else:
            raise InputError(
                f"{ref.uri} is a {ref.kind}; expected a volume store, or samples (the directory that `prdit sample` prints)."
            )
    opened = VolumeStore.open(path)
    return select(opened, volumes or (), everything=everything, patients=patient or (), snapshot=snapshot, level=level)
