"""`prdit reconstruct`: volumes behind a measurement. Imports of heavy libraries wait until the command needs them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import (
    Config,
    Json,
    Set,
    Workdir,
    clear_errors,
    found_artifact,
    given_path,
    load_settings,
    overrides,
    run_context,
    show_result,
)

if TYPE_CHECKING:
    from tasks.run.progress import Advance
    from tasks.run.stage import StageOutcome

_OF_GUIDE = "guide."  # settings that are the guide's own


def reconstruct(
    measurement: Annotated[
        Path,
        typer.Argument(
            help="What was measured: a NIfTI file, a folder with one DICOM series or DICOM radiographs, projections in mm of "
            "water as .npy; or, with --volume, a volume store.",
            parser=given_path,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="Checkpoint of a model of whole volumes: its directory, models:/prdit@champion or a reference."
        ),
    ],
    operator: Annotated[
        Path, typer.Option(help="YAML file with name and settings of the operator (docs/guided.md).", parser=given_path)
    ],
    volume: Annotated[
        str | None,
        typer.Option(
            help="Volume of the store that is measured by the operator itself; the result is then compared with it."
        ),
    ] = None,
    guide: Annotated[str | None, typer.Option(help="projection (default), pigdm, dps or tf.")] = None,
    strength: Annotated[float | None, typer.Option(min=0, help="Of the guide; 0: none. Default: the guide's.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Volumes to draw (default: sample.num_volumes).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Evaluations of the model per volume.")] = None,
    noise_seed: Annotated[int, typer.Option(min=0, help="Of the noise of a simulated measurement.")] = 0,
    trained_patients: Annotated[
        bool,
        typer.Option("--trained-patients", help="Allow --volume of a patient the model was trained on; it is marked."),
    ] = False,
    config: Config = "small",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Draw volumes that a trained model holds possible behind a measurement: finer voxels, missing parts, thin slices, few X-rays.

    Writes the volumes (store and NIfTI), their mean, standard deviation and interval, and `reconstruction.html`. Everything is
    synthetic and marked so. How volumes are drawn is set as for `prdit sample` (`--set sample.…`); further settings of the guide
    by `--set guide.…`. What was drawn when a run was stopped is kept: the same command goes on. docs/guided.md.
    """
    with clear_errors():
        settings = settings or []
        own = [each.removeprefix(_OF_GUIDE) for each in settings if each.startswith(_OF_GUIDE)]
        loaded = load_settings(config, [each for each in settings if not each.startswith(_OF_GUIDE)], workdir=workdir)
        from flows.config import pydantic_explained
        from flows.reconstruct_run import Wanted, run, settings_of
        from flows.settings_text import read_settings
        from tasks.run.progress import show_progress

        given: dict[str, Any] = {"guide": guide, "strength": strength, "num_volumes": samples, "num_steps": steps}
        given |= {"guide_settings": overrides(own), "trained_patients": trained_patients}
        wanted = Wanted(
            measurement,
            found_artifact(model, loaded.workdir),
            read_settings(operator, "the operator", "name: downsampling"),
            settings_of(loaded, pydantic_explained, given),
            volume or "",
            noise_seed,
        )

        def run_stage(name: str, work: "Callable[[Advance], StageOutcome]") -> "StageOutcome":
            with show_progress(name) as progress:
                return work(progress)

        with run_context(loaded) as context:
            value = run(loaded, wanted, context, run_stage)
        show_result(value, as_json, lambda: _text(value))


def _text(value: dict[str, Any]) -> str:
    """What was reconstructed, for people."""
    found = value["reconstruction"]
    how = "cached" if value["cached"] else f"in {value['seconds']:.0f} s"
    lines = [f"{found['num_samples']} volumes {how}: {value['ref']['uri']}"]
    if truth := found["truth"]:
        lines.append(f"{'':12} PSNR dB   SSIM  error HU  residual {found['unit']}")
        for name, each in truth["accuracy"].items():
            figures = (
                f"{each['psnr_db']:7.2f} {each['ssim']:6.3f} {each['error_hu']['all']:9.1f} {each['residual']:9.4g}"
            )
            lines.append(f"{name:12} {figures}")
        inside = ", ".join(f"{share:.0%} in {float(level):.0%}" for level, share in truth["coverage"].items())
        lines += [f"voxels inside their intervals: {inside}"] if inside else []
    lines += [f"note: {sentence}" for sentence in found["warnings"]]
    return "\n".join([*lines, f"page: {value['page']}"])
