"""`prdit reconstruct`: volumes behind a measurement. Imports of heavy libraries wait until the command needs them."""

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
    run_context,
    show_result,
)

if TYPE_CHECKING:
    from storage.documents.reconstruction import Reconstruction
    from tasks.reconstruct.measure import Source

_ARRAY = ".npy"


def reconstruct(
    measurement: Annotated[
        Path,
        typer.Argument(
            help="What was measured: a NIfTI file, a folder with one DICOM series, projections in mm of water as .npy; or, with "
            "--volume, a volume store.",
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
        own, others = _split(settings)
        loaded = load_settings(config, others, workdir=workdir)
        from flows.config import pydantic_explained
        from storage.documents.reconstruction import Reconstruction
        from tasks.model.checkpoint import load_info
        from tasks.reconstruct.config import ReconstructConfig
        from tasks.reconstruct.measure import measure_stage
        from tasks.reconstruct.setting import Setting
        from tasks.reconstruct.stage import reconstruct_stage
        from tasks.run.progress import show_progress

        checkpoint = found_artifact(model, loaded.workdir)
        _check_checkpoint(checkpoint)
        given = {"guide": guide, "strength": strength, "num_volumes": samples, "num_steps": steps}
        values = loaded.sample.model_dump() | {key: value for key, value in given.items() if value is not None}
        values |= {"guide_settings": own, "trained_patients": trained_patients}
        with pydantic_explained("prdit reconstruct"):
            how = ReconstructConfig.model_validate(values)
        source = _source(measurement, volume, noise_seed)
        with run_context(loaded) as context:
            setting = Setting.of(load_info(checkpoint))
            measured = measure_stage(source, _operator(operator), setting, context)
            with show_progress("reconstruct") as progress:
                outcome = reconstruct_stage(checkpoint, measured.ref, how, context, progress, runner=loaded.runner)
        found = Reconstruction.load(outcome.ref.path)
        value = outcome.model_dump(mode="json") | {
            "measurement": measured.ref.model_dump(mode="json"),
            "reconstruction": found.to_json(),
            "page": str(outcome.ref.path / _page_name()),
        }
        show_result(value, as_json, lambda: _text(found, value["page"], outcome))


def _page_name() -> str:
    from tasks.reconstruct.run import PAGE

    return PAGE


def _split(settings: list[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Settings of the guide, `--set guide.KEY=VALUE`, and those of the configuration."""
    from flows.console import overrides

    prefix = "guide."
    own = [each.removeprefix(prefix) for each in settings or [] if each.startswith(prefix)]
    return overrides(own), [each for each in settings or [] if not each.startswith(prefix)]


def _check_checkpoint(ref: Any) -> None:
    from storage.errors import InputError

    if ref.kind != "checkpoint":
        raise InputError(f"prdit reconstruct needs a checkpoint (--model), got a {ref.kind} at {ref.uri}.")


def _operator(path: Path) -> dict[str, Any]:
    """Name and settings of the operator."""
    from flows.settings_text import read_settings

    return read_settings(path, "the operator", "name: downsampling")


def _source(measurement: Path, volume: str | None, noise_seed: int) -> "Source":
    """Where the measurement comes from.

    Raises: InputError, StorageError: nothing is there that could be one.
    """
    from storage.errors import InputError
    from storage.snapshots import newest
    from storage.sources.one_scan import find_scan
    from storage.volume_store import VolumeStore
    from tasks.reconstruct.measure import ArrayFile, ScanFiles, StoredVolume

    if volume is not None:
        return StoredVolume(newest(VolumeStore.open(measurement)), volume, noise_seed)
    if (measurement / "zarr.json").is_file():
        raise InputError(
            f"{measurement} is a volume store. Name the volume of it that is to be measured: --volume ID (`prdit ls {measurement} "
            "--volumes` lists them)."
        )
    if measurement.suffix == _ARRAY and measurement.is_file():
        return ArrayFile(measurement)
    return ScanFiles(find_scan(measurement))


def _text(found: "Reconstruction", page: str, outcome: Any) -> str:
    """What was reconstructed, for people."""
    how = "cached" if outcome.cached else f"in {outcome.seconds:.0f} s"
    lines = [f"{found.num_samples} volumes {how}: {outcome.ref.uri}"]
    if found.truth is not None:
        lines.append(f"{'':12} PSNR dB   SSIM  error HU  residual {found.unit}")
        for name, each in found.truth.accuracy.items():
            error = each.error_hu["all"]
            lines.append(f"{name:12} {each.psnr_db:7.2f} {each.ssim:6.3f} {error or 0:9.1f} {each.residual:9.4g}")
        inside = ", ".join(f"{share:.0%} in {float(level):.0%}" for level, share in found.truth.coverage.items())
        lines += [f"voxels inside their intervals: {inside}"] if inside else []
    lines += [f"note: {sentence}" for sentence in found.warnings]
    return "\n".join([*lines, f"page: {page}"])
