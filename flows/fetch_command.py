"""`prdit fetch`: scans from a public archive. Imports of heavy libraries wait until a command needs them."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import Json, clear_errors, example, given_path, show_result, stop_as_ctrl_c
from storage.places import as_folder

if TYPE_CHECKING:
    from storage.documents.fetch_plan import FetchPlan
    from tasks.fetch.download import Fetched

_IDC = (
    example("prdit fetch idc --collection lidc_idri --patients 20 --dry-run")
    + "\n\n`prdit fetch idc --collection nlst --max-gb 50 --where \"Manufacturer = 'SIEMENS' AND instanceCount < 400\"`"
)
fetch_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    fetch_app.command("idc", epilog=_IDC)(idc)
    app.add_typer(
        fetch_app, name="fetch", help="Download scans from a public archive into a folder that an ingest reads."
    )


@fetch_app.callback()
def _fetch() -> None:
    """Download scans from a public archive into a folder that an ingest reads."""


def idc(
    collection: Annotated[str, typer.Option(help="Collection of the archive, by its id: lidc_idri, nlst, …")],
    patients: Annotated[
        int | None, typer.Option(min=1, help="At most so many patients: the first by PatientID. Default: all.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder (default: .prdit/idc/COLLECTION).", parser=given_path)] = None,
    where: Annotated[str, typer.Option(help="Further condition, SQL on the columns of the index.")] = "",
    modality: Annotated[str, typer.Option(help="DICOM Modality of the series.")] = "CT",
    min_slices: Annotated[int, typer.Option(min=1, help="Least number of DICOM images of a series.")] = 1,
    max_gb: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1e9, help="Whole patients, from the first on, as long as they are no larger together."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be downloaded; nothing is.")] = False,
    index: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file with the columns of idc_index (default: the installed one).", parser=given_path
        ),
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="S3 server that has the buckets (default: Amazon's).")] = None,
    as_json: Json = False,
) -> None:
    """Download DICOM series of a collection of the NCI Imaging Data Commons, without an account.

    Every image is checked by size and MD5. The same command goes on where it was stopped; one that asks for more of the same adds
    to the folder. Licences and citations are in its ATTRIBUTION.md, the plan in fetch.json. docs/fetch.md.
    """
    with clear_errors():
        from storage.documents.fetch_plan import Selection
        from storage.idc_bucket import AMAZON
        from storage.idc_index import IdcIndex
        from tasks.fetch.download import fetch
        from tasks.fetch.plan import make_plan, plan_for
        from tasks.run.progress import show_progress

        selection = Selection(
            collection=collection,
            modality=modality,
            where=where.strip(),
            min_slices=min_slices,
            patients=patients,
            max_gb=max_gb,
        )
        folder = as_folder(to, "--to") if to else Path(".prdit/idc") / Path(collection).name
        plan = plan_for(folder, make_plan(IdcIndex(index), selection))
        value = _value(plan, folder)
        if dry_run:
            show_result(value, as_json, lambda: "\n".join([*_lines(value), "dry run: nothing was downloaded"]))
            return
        for line in _lines(value):
            typer.secho(line, err=True)
        stop_as_ctrl_c()
        with show_progress("fetch") as progress:
            done = fetch(plan, folder, endpoint=endpoint or AMAZON, progress=progress)
        value |= {"downloaded": _downloaded(done), "next": _next(value)}
        show_result(value, as_json, lambda: f"{_done_text(done, value)}\nnext: {value['next']}")


def _value(plan: "FetchPlan", folder: Path) -> dict[str, Any]:
    """What the command says of a plan, without PatientIDs."""
    from tasks.fetch.attribution import NAME
    from tasks.fetch.plan import DATA, bytes_there, licences
    from tasks.maintain.disk import free_bytes

    shares = licences(plan.series)
    return {
        "folder": str(folder),
        "data": str(folder / DATA),
        "plan": str(folder / plan.NAME),
        "attribution": str(folder / NAME),
        "index": plan.index,
        "collection": plan.selection.collection,
        "num_patients": plan.num_patients,
        "num_series": len(plan.series),
        "num_images": plan.num_images,
        "num_bytes": plan.num_bytes,
        "num_bytes_there": bytes_there(folder, plan),
        "free_bytes": free_bytes(folder),
        "licences": [
            {
                "licence": share.licence,
                "doi": share.doi,
                "num_series": share.num_series,
                "forbids_commercial_use": share.forbids_commercial_use,
            }
            for share in shares
        ],
    }


def _lines(value: dict[str, Any]) -> list[str]:
    size, there, free = (value[name] / 1e9 for name in ("num_bytes", "num_bytes_there", "free_bytes"))
    lines = [
        f"{value['collection']} ({value['index']}): {value['num_patients']} patient(s), {value['num_series']} series, "
        f"{value['num_images']} images, {size:.2f} GB",
        f"{value['folder']}: {there:.2f} GB are there, {free:.2f} GB free",
    ]
    for share in value["licences"]:
        bars = "; it forbids commercial use" if share["forbids_commercial_use"] else ""
        source = f", https://doi.org/{share['doi']}" if share["doi"] else ""
        lines.append(f"licence {share['licence'] or 'not stated'}: {share['num_series']} series{source}{bars}")
    return lines


def _downloaded(done: "Fetched") -> dict[str, int]:
    from dataclasses import asdict

    return asdict(done)


def _done_text(done: "Fetched", value: dict[str, Any]) -> str:
    text = f"{done.num_downloaded} images downloaded ({done.num_bytes / 1e9:.2f} GB), {done.num_there} were there"
    text += "; each has the archive's size and MD5"
    if done.num_size_only:
        text += f"; the archive has no MD5 of {done.num_size_only} of them, whose size alone was checked"
    return f"{text}\nlicences and citations: {value['attribution']}"


def _next(value: dict[str, Any]) -> str:
    return f"prdit ingest {shlex.quote(value['data'])} --store .prdit/store"
