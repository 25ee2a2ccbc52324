"""`prdit reproduce`: the published protocol on a checkpoint. Imports of heavy libraries wait until the command needs them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import (
    Json,
    Set,
    Store,
    Workdir,
    clear_errors,
    example,
    found_artifact,
    given_path,
    overrides,
    run_stages,
    show_result,
)

if TYPE_CHECKING:
    from flows.config import PipelineConfig
    from storage.artifacts import Ref
    from storage.documents.report import Report
    from tasks.model.checkpoint import CheckpointInfo

EPILOG = example("prdit reproduce prdit_lidc128.pt --store .prdit/lidc --medicalnet resnet_50.pth") + (
    "\n\n`prdit reproduce prdit_lidc128.pt --store .prdit/lidc --set sample.num_volumes=50` (a first look)"
)
_FID_UNIT = 1e-3  # in which the paper's tables give FID
_SHOWN = ("fid", "fid_val", "mmd", "mmd_val", "wasserstein", "wasserstein_real", "w_score", "anatomy_pass_share")


def reproduce(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Checkpoint file of the published code, or the folder of one that was imported, or models:/prdit@champion."
        ),
    ],
    store: Store = None,
    medicalnet: Annotated[
        Path | None,
        typer.Option(help="MedicalNet's ResNet-50 weights, for the published features.", parser=given_path),
    ] = None,
    medicalnet_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that this file must have; default: the file's is recorded.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Report of a reference run on the same store (published: of PRDiT-12L), for the W-score."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="prdit|fm|sr|tf", help="As for import-checkpoint, of a file.")
    ] = None,
    volume_size: Annotated[int | None, typer.Option(min=1, help="As for import-checkpoint, of a file.")] = None,
    dataset: Annotated[str, typer.Option(metavar="lidc|rad", help="As for import-checkpoint, of a file.")] = "lidc",
    settings: Set = None,
    workdir: Workdir = None,
    as_json: Json = False,
) -> None:
    """Import a published checkpoint, sample and evaluate it as published, and show the figures beside the paper's.

    1000 volumes by the published sampler, compared with every volume of the store in MedicalNet features. What a setting, the
    store or missing weights make different is listed. docs/reproduce.md: which files, how long, what to expect.
    """
    with clear_errors():
        from flows.stages import training_row
        from storage.artifacts import input_ref
        from storage.documents.report import Report
        from tasks.model.checkpoint import load_info

        ref = _imported(checkpoint, variant, volume_size, dataset, workdir)
        info = load_info(ref)
        name, published = protocol(info)
        given = {key: str(value) for key, value in (("store", store), ("workdir", workdir)) if value is not None}
        config, real = _prepared(
            (name, published | _features(medicalnet, medicalnet_sha256)), settings, given, info, reference
        )
        row = training_row(list(config.trainings)[-1])
        outcome = run_stages(config, "evaluate", {"ingest": real, row: ref})
        report = Report.load(outcome.ref.path)
        value = {
            "protocol": name,
            "checkpoint": ref.model_dump(mode="json"),
            "samples": input_ref(outcome.ref, "samples").model_dump(mode="json"),
            "report": outcome.ref.model_dump(mode="json"),
            "page": str(outcome.ref.path / "report.html"),
            "figures": {key: each.model_dump(mode="json") for key, each in report.figures.items()},
            "paper": _paper(info),
            "not_as_published": differences(name, published, config, real, report),
        }
        show_result(value, as_json, lambda: _text(value))


def protocol(info: "CheckpointInfo") -> tuple[str, dict[str, Any]]:
    """The configuration of the published protocol for a checkpoint, and what it has of its own.

    Source: SPEC §3 (samplers), §3.1 and §3.4 (flow matching), §3.2 c (250 steps of TF-PRDiT), §9.
    """
    if info.process is not None and info.process.name == "flow":
        return "published/fm-256", {}
    if info.window.mapping == "published-rad":
        return "published/rad-128", {}
    is_tf = info.model.get("arithmetic") == "tf"
    return f"published/lidc-{256 if info.view.size == 256 else 128}", {"sample": {"num_steps": 250}} if is_tf else {}


def differences(
    name: str, published: dict[str, Any], config: "PipelineConfig", real: "Ref", report: "Report"
) -> list[str]:
    """What a run has otherwise than the published protocol, one sentence each.

    Args:
        name: of the protocol's configuration.
        published: what the checkpoint's variant changes of it.
        config: of the run.
        real: snapshot that samples were compared with.
        report: of the run.
    """
    from flows.config import load_config
    from storage.snapshots import open_snapshot

    expected = load_config(name, published)
    ours, theirs = config.sample.key_fields(), expected.sample.key_fields()
    found = [f"sample.{key} is {ours[key]}; published {theirs[key]}." for key in ours if ours[key] != theirs[key]]
    if report.features.extractor != "medicalnet":
        found.append(
            f"FID and MMD are measured in other features ({report.features.title}), so they do not compare with the paper's: give "
            "--medicalnet FILE with MedicalNet's ResNet-50 weights (docs/reproduce.md)."
        )
    if expected.recipe and report.volume_size != (size := list(expected.checkpoints().values())[-1].view.size):
        found.append(
            f"The volumes have {report.volume_size}³ voxels; published {size}³, so no figure compares with the paper's."
        )
    grid = open_snapshot(real)[0].grid
    if grid.interpolation != expected.ingest.interpolation:
        found.append(
            f"The store was resampled by {grid.interpolation!r} interpolation; published {expected.ingest.interpolation!r}."
        )
    return found


def _imported(
    text: str, variant: str | None, volume_size: int | None, dataset: str, workdir: Path | None = None
) -> "Ref":
    """The checkpoint: a file is imported (once), a folder, reference or registered model is one already."""
    from storage.errors import InputError
    from storage.registry import is_model_name
    from tasks.convert.importing import ImportSettings, import_checkpoint
    from tasks.run.progress import show_progress

    if Path(text).is_dir() or text.lstrip().startswith("{") or is_model_name(text):
        if variant is not None or volume_size is not None:
            raise InputError(f"{text} is imported already; --variant and --volume-size are for checkpoint files.")
        return found_artifact(text, workdir)
    chosen = ImportSettings(variant=variant, volume_size=volume_size, dataset=dataset)
    with show_progress("import") as progress:
        return import_checkpoint(given_path(text), None, chosen, progress)


def _features(file: Path | None, sha256: str | None) -> dict[str, Any]:
    """Settings of the published feature network, where there is a file."""
    from storage.errors import InputError, MissingArtifactError
    from storage.files import sha256_file

    if file is None:
        if sha256 is not None:
            raise InputError("--medicalnet-sha256 was given without --medicalnet, the file that must have it.")
        return {}
    if not file.is_file():
        raise MissingArtifactError(
            f"--medicalnet {file}: there is no such file. docs/reproduce.md says where the weights come from; without the option "
            "distances are measured in other features."
        )
    path = file.resolve()
    return {"evaluate": {"extractor": {"name": "medicalnet", "path": str(path), "sha256": sha256 or sha256_file(path)}}}


def _prepared(
    chosen: tuple[str, dict[str, Any]],
    settings: list[str] | None,
    given: dict[str, str],
    info: "CheckpointInfo",
    reference: str | None,
) -> tuple["PipelineConfig", "Ref"]:
    """The configuration and the snapshot of a run, after everything has been refused that would fail after hours of sampling.

    Raises: InputError, StorageError: weights of the feature network, store or reference run that do not fit.
    """
    from flows.config import load_config, merge
    from flows.stages import real_volumes
    from prdit_models.metrics.distances import MIN_VOLUMES
    from storage.errors import InputError
    from storage.snapshots import open_snapshot
    from tasks.evaluate.features import load_extractor
    from tasks.evaluate.reference_run import reference_distance

    name, below = chosen
    values = merge(merge(below, overrides(settings)), given)
    config = load_config(name, values)
    real = real_volumes(config, any_grid=True)
    opened, listed = open_snapshot(real)
    if abs(opened.spacing_mm - info.spacing_mm) > 1e-6:
        raise InputError(
            f"The store {config.store} has {opened.spacing_mm} mm voxels, the checkpoint was trained at {info.spacing_mm} mm. "
            f"Ingest the scans into a store of that spacing: --set ingest.spacing_mm={info.spacing_mm:g}."
        )
    num_drawn, num_real = config.sample.num_volumes, len(listed.volumes)
    if min(num_drawn, num_real) < MIN_VOLUMES:
        raise InputError(
            f"A distance between sets needs at least {MIN_VOLUMES} volumes on each side; {num_drawn} would be drawn "
            f"(sample.num_volumes) and compared with the {num_real} of {config.store}."
        )
    load_extractor(config.evaluate)
    if reference is not None:
        critics = config.evaluate.metric_settings().get("wasserstein")
        if critics is None:
            raise InputError("--reference was given, but evaluate.metrics.wasserstein is null.")
        distance = reference_distance(found_artifact(reference), info, real, critics, config.sample.num_volumes)
        relative = {"evaluate": {"metrics": {"wasserstein": {"reference_distance": distance}}}}
        config = load_config(name, merge(values, relative))
    return config, real


def _paper(info: "CheckpointInfo") -> dict[str, Any] | None:
    """The paper's figures of such a model, or None."""
    from dataclasses import asdict

    from flows.published_figures import published_figures

    base = info.model
    while "base" in base:
        base = base["base"]
    if info.process is not None and info.process.name == "flow":
        return None
    dataset = "rad" if info.window.mapping == "published-rad" else "lidc"
    found = published_figures(info.family, dataset, info.view.size, int(base.get("depth", 0)))
    return None if found is None else asdict(found)


def _text(value: dict[str, Any]) -> str:
    """Figures beside the paper's, what is not as published, and where the report is."""
    paper = value["paper"] or {}
    lines = [f"published protocol: {value['protocol']}", f"{'':<34}{'here':<34}{paper.get('model', '')}".rstrip()]
    for key, figure in value["figures"].items():
        short = key.removesuffix("_random_features")
        if short in _SHOWN:
            unit = _FID_UNIT if short.startswith("fid") else 1.0
            label = short + (" ×10³" if unit != 1.0 else "") + (" (random features)" if short != key else "")
            beside = f"{paper[short] / unit:.4g}" if short in paper else ""
            lines.append(f"{label:<34}{_measured(figure, unit):<34}{beside}".rstrip())
    if value["not_as_published"]:
        lines += ["not as published:", *(f"  {sentence}" for sentence in value["not_as_published"])]
    return "\n".join([*lines, f"report: {value['page']}"])


def _measured(figure: dict[str, Any], unit: float) -> str:
    if figure["value"] is None:
        return "–"
    value = f"{figure['value'] / unit:.4g}"
    if figure["interval"]:
        value += f" [{figure['interval']['low'] / unit:.4g}, {figure['interval']['high'] / unit:.4g}]"
    return f"{value} {figure['unit']}".rstrip()
