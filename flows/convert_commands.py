"""`prdit import-checkpoint` and `prdit export-checkpoint`: checkpoints of the published code."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import Json, Workdir, clear_errors, example, find_ref, given_path, json_line, show_result

_IMPORT = example("prdit import-checkpoint prdit_lidc128.pt") + (
    "\n\n`prdit import-checkpoint weights.pt --variant tf --volume-size 128` (a file that holds weights alone)"
    "\n\n`prdit import-checkpoint rad128.pt --dataset rad`"
)
_EXPORT = example("prdit export-checkpoint .prdit/work/train-global/KEY model.pt")


def register(app: typer.Typer) -> None:
    """Add both commands to the command line."""
    app.command("import-checkpoint", epilog=_IMPORT)(import_checkpoint)
    app.command("export-checkpoint", epilog=_EXPORT)(export_checkpoint)


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint file of PRDiT, PRDiT-FM, PRDiT-SR or TF-PRDiT.", parser=given_path)
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="prdit|fm|sr|tf",
            help="Which arithmetic the weights were trained with; default: by the file's stored model name.",
        ),
    ] = None,
    volume_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Edge of the model's volume in voxels (of the refined one for sr); default: the file's."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the imported checkpoint, new or empty; default: .prdit/imported/ and the start of the file's SHA-256.",
            parser=given_path,
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(metavar="lidc|rad", help="Published data set: sets axes, spacing and intensity mapping.")
    ] = "lidc",
    axes: Annotated[
        str | None, typer.Option(metavar="xyz|zyx", help="Order of the training arrays' axes; default: the data set's.")
    ] = None,
    spacing_mm: Annotated[
        float | None, typer.Option(help="Voxel distance of the training data at full size; default: the data set's.")
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOWER UPPER", help="HU at the ends of the model's range; default: nominal."),
    ] = None,
    noise_std: Annotated[
        float | None, typer.Option(help="Noise std of the training; default: 0.5 for prdit and sr, 1 for tf and fm.")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; needed for a width that is not a published one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import a checkpoint file of the published code: read safely, checked key by key, written as safetensors and JSON.

    The result is a checkpoint like any other: `prdit sample` draws from it, `prdit train` starts from it.
    """
    with clear_errors():
        from storage.documents.checkpoint import Checkpoint
        from tasks.convert.importing import ImportSettings
        from tasks.convert.importing import import_checkpoint as run_import
        from tasks.run.progress import show_progress

        settings = ImportSettings(
            variant=variant,
            volume_size=volume_size,
            num_heads=num_heads,
            noise_std=noise_std,
            dataset=dataset,
            axes=axes,
            window_hu=window,
            spacing_mm=spacing_mm,
        )
        with show_progress("import") as progress:
            ref = run_import(file, output, settings, progress)
        info = Checkpoint.load(ref.path).to_json()
        value = {"ref": ref.model_dump(mode="json"), "checkpoint": info}
        show_result(value, as_json, lambda: f"{_summary(info)}\n{ref.kind}: {ref.uri}\n{json_line(value['ref'])}")


def _summary(info: dict[str, Any]) -> str:
    """What was recognised and what was assumed, in words."""
    imported, model = info["imported"], info["model"]
    base, size = model, model.get("volume_size")
    while "base" in base:
        size, base = size or base["head"]["volume_size"], base["base"]
    lower, upper = info["intensity"]["lower_hu"], info["intensity"]["upper_hu"]
    name = imported["model_name"] or "not stored"
    lines = [
        f"variant {imported['variant']} (model name {name}), {size}³, {info['step']} steps",
        f"width {base['hidden_size']}, depth {base['depth']}, {base['num_heads']} heads, noise std {info['process']['noise_std']}",
        f"axes {info['axes']}, {info['spacing_mm']} mm, model range [{lower:g}, {upper:g}] HU",
    ]
    if imported["per_scan_intensity"]:
        lines.append("each training scan was scaled by itself: HU of samples are nominal")
    if imported["substituted"]:
        lines.append(f"the file has no weights under {imported['substituted']!r}: the others are used in their place")
    return "\n".join(lines)


def export_checkpoint(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint: its directory, models:/prdit@champion, or a reference as JSON.")
    ],
    file: Annotated[Path, typer.Argument(help="File to write; must not exist.", parser=given_path)],
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a file the published code reads (`model`, `ema`, `config`, `epoch`, `train_steps`)."""
    with clear_errors():
        from storage.files import sha256_file
        from tasks.convert.exporting import export_checkpoint as run_export
        from tasks.run.progress import show_progress

        ref = find_ref(checkpoint, workdir)
        with show_progress("export") as progress:
            path = run_export(ref, file, progress)
        value = {"file": str(path), "sha256": sha256_file(path), "bytes": path.stat().st_size}
        show_result(value, as_json, lambda: f"{path}: {value['bytes']} bytes, sha256 {value['sha256']}")
