"""Import: a checkpoint file of the published code -> a checkpoint artifact."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.flow import FlowProcess
from prdit_models.diffusion.process import Process
from prdit_models.families.family import family_of
from prdit_models.intensity import HounsfieldWindow
from prdit_models.networks.build import build_network
from prdit_models.networks.weights import check_weights
from storage.artifacts import Ref, commit_artifact, committed_ref, verify_artifact
from storage.checkpoints import WEIGHTS_FILES, save_tensors
from storage.documents.checkpoint import Checkpoint, Imported
from storage.errors import AlreadyExistsError, InputError, MissingArtifactError, as_input_error
from storage.files import fsync_directory, naming_path, remove_leftovers, temporary_path
from tasks.convert.foreign import ForeignCheckpoint, read_foreign
from tasks.convert.recognise import Recognised, recognise
from tasks.model.checkpoint import CheckpointInfo
from tasks.model.view import ViewConfig

STAGE = "import-checkpoint"
RECIPE = 2
ROOT = Path(".prdit") / "imported"
OURS = "prdit"  # key of the configuration under which our exports keep what the published code does not
AXES = ("xyz", "zyx")
NOISE_STD = {"prdit": 0.5, "sr": 0.5, "tf": 1.0, "fm": 1.0}
_LEVEL_0_EDGE = 256  # voxels of the published box
_TF_MEAN, _TF_STD = 0.202013, 0.200640  # of HU + 1000 in 0..2500, scaled to [0, 1] (SPEC §3.2 d)
Progress = Callable[[int, int], None]
logger = logging.getLogger("prdit.convert")


@dataclass(frozen=True)
class Dataset:
    """The volumes that a published model was trained on (SPEC §5).

    Attributes:
        axes: order of the arrays.
        spacing_mm: voxel distance at full size.
        mapping: of intensities, see `HounsfieldWindow`.
    """

    axes: str
    spacing_mm: float
    mapping: str


DATASETS = {"lidc": Dataset("xyz", 1.0, "published-lidc"), "rad": Dataset("zyx", 0.8, "published-rad")}


@dataclass(frozen=True)
class ImportSettings:
    """What a file does not state. None: taken from the file, else from the data set and the variant.

    Attributes:
        variant: `prdit`, `fm`, `sr` or `tf`; None takes it from the stored model name.
        volume_size: edge of the model's volume; None takes it from the stored configuration.
        num_heads: attention heads, of a width that is not published.
        noise_std: of the process.
        dataset: one of `DATASETS`, for the three below.
        axes: order of the arrays the model was trained on.
        window_hu: Hounsfield units that the ends of the model's range correspond to.
        spacing_mm: voxel distance of the training data at full size.
    """

    variant: str | None = None
    volume_size: int | None = None
    num_heads: int | None = None
    noise_std: float | None = None
    dataset: str = "lidc"
    axes: str | None = None
    window_hu: tuple[float, float] | None = None
    spacing_mm: float | None = None

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise InputError(f"Unknown data set {self.dataset!r}; expected one of {list(DATASETS)}.")
        if self.axes is not None and self.axes not in AXES:
            raise InputError(f"axis order is {self.axes!r}; expected 'xyz' (published LIDC arrays) or 'zyx'.")
        for name in ("noise_std", "spacing_mm"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; expected a positive number.")


def import_checkpoint(path: Path, directory: Path | None, settings: ImportSettings, progress: Progress) -> Ref:
    """Turn a published checkpoint file into a checkpoint artifact.

    Weights are copied from a mapped file to the new one, so that memory does not grow with the model (half precision: one set of
    weights is converted in memory).

    Args:
        path: the file, opened read-only.
        directory: where the artifact goes, new or empty; None: `.prdit/imported/<first 12 digits of the file's SHA-256>`.
        settings: what the file does not state.
        progress: called with (steps done, total).
    Returns: its reference; that of the existing artifact where the same file was imported with the same settings.
    Raises:
        InputError: the file cannot be imported with these settings; nothing is written.
        AlreadyExistsError: the directory holds something else.
    """
    total = 5
    progress(0, total)
    foreign = read_foreign(path)
    progress(1, total)
    found = recognise(foreign, variant=settings.variant, volume_size=settings.volume_size, num_heads=settings.num_heads)
    info = _info(found, foreign, settings)
    with torch.device("meta"):
        expected = build_network(found.network).state_dict()
    for number, (name, state) in enumerate((("model", foreign.model), ("ema", foreign.ema))):
        with as_input_error():
            check_weights(state, expected, f"They are those under {name!r} in {path.name}; nothing was imported.")
        progress(2 + number, total)
    target = directory or ROOT / foreign.sha256[:12]
    if (known := _already_there(target, info)) is not None:
        progress(total, total)
        return known
    remove_leftovers(target.parent)
    temporary = temporary_path(target)
    try:
        for name, state in (("raw", foreign.model), ("ema", foreign.ema)):
            save_tensors(temporary / WEIGHTS_FILES[name], {key: state[key].float().numpy() for key in expected})
            progress(4, total)
        info.save(temporary)
        kept = {"imported": info.to_json()["imported"]}
        commit_artifact(temporary, "checkpoint", stage=STAGE, recipe=RECIPE, inputs={}, config=kept)
        with naming_path(target):
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync_directory(target.parent)
    progress(total, total)
    ref = committed_ref(target)
    if ref is None:
        raise MissingArtifactError(f"{target} was removed while it was written; import again.")
    return ref


def _already_there(target: Path, info: Checkpoint) -> Ref | None:
    """The artifact of an equal earlier import, verified; None where the folder is empty or missing."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    ref = committed_ref(target) if target.is_dir() else None
    if ref is None or ref.kind != "checkpoint" or Checkpoint.load(target) != info:
        raise AlreadyExistsError(
            f"{target} holds something else (another file, or this one imported with other settings); give a folder of its own "
            "with --output."
        )
    verify_artifact(ref)
    logger.info("imported before: %s", target)
    return ref


def _info(found: Recognised, foreign: ForeignCheckpoint, settings: ImportSettings) -> Checkpoint:
    """Description of the checkpoint."""
    network, variant, dataset = found.network, found.variant, DATASETS[settings.dataset]
    ours = _ours(foreign)
    window = _window(variant, dataset, ours, settings.window_hu)
    size = network.volume_size
    edge, centre = int(ours.get("edge", _LEVEL_0_EDGE)), ours.get("centre")
    if edge % size:
        logger.warning(
            "volume size %d does not divide the box of %d voxels, so the box it was trained on is unknown; assuming one of %d",
            size,
            edge,
            size,
        )
        edge = size
    view = ViewConfig(size=size, edge=edge, centre=centre)
    info = CheckpointInfo(
        family=family_of(network.to_dict()),
        model=network.to_dict(),
        process=_process(variant, settings.noise_std or ours.get("noise_std")),
        window=window,
        view=view,
        spacing_mm=settings.spacing_mm or ours.get("spacing_mm") or dataset.spacing_mm,
        axes=settings.axes or ours.get("axes") or dataset.axes,
    )
    imported = Imported(
        variant=variant,
        model_name=found.name,
        source_sha256=foreign.sha256,
        substituted=foreign.missing,
        epoch=foreign.epoch,
        dataset=None if ours else settings.dataset,
        per_scan_intensity=not ours and variant != "tf",
    )
    return info.to_document(step=foreign.step, seed=0, gates=None).model_copy(update={"imported": imported})


@as_input_error()
def _process(variant: str, noise_std: float | None) -> Process:
    std = NOISE_STD[variant] if noise_std is None else noise_std
    return FlowProcess(std) if variant == "fm" else CosineProcess(std)


@as_input_error()
def _window(
    variant: str, dataset: Dataset, ours: dict[str, Any], given: tuple[float, float] | None
) -> HounsfieldWindow:
    """How HU map to the model's range: as recorded by our export, or nominally."""
    if ours:
        window = HounsfieldWindow(**ours["intensity"])
    elif variant == "tf":
        window = HounsfieldWindow(-1000.0, 1500.0, -_TF_MEAN / _TF_STD, (1.0 - _TF_MEAN) / _TF_STD)
    else:
        window = HounsfieldWindow.of_mapping(-1000.0, 1000.0, dataset.mapping)
    return window if given is None else HounsfieldWindow(**(asdict(window) | dict(zip(_ENDS, given, strict=True))))


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _is_place(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(type(part) is int for part in value)


_ENDS = ("lower_hu", "upper_hu")
_OURS_NEEDED = ("axes", "spacing_mm", "noise_std", "intensity", "edge", "centre")


def _ours(foreign: ForeignCheckpoint) -> dict[str, Any]:
    """What `prdit export-checkpoint` recorded, or nothing.

    Raises: InputError: there is such a record, and it is incomplete.
    """
    record = foreign.config.get(OURS)
    if record is None:
        return {}
    known = set(HounsfieldWindow.__dataclass_fields__)
    whole = (
        isinstance(record, dict)
        and set(record) == set(_OURS_NEEDED)
        and record["axes"] in AXES
        and isinstance(record["intensity"], dict)
        and {*_ENDS} <= set(record["intensity"]) <= known
        and all(_is_positive(record[name]) for name in ("spacing_mm", "noise_std", "edge"))
        and record["edge"] == int(record["edge"])
        and all(isinstance(value, (int, float)) for name, value in record["intensity"].items() if name != "mapping")
        and (record["centre"] is None or _is_place(record["centre"]))
    )
    if not whole:
        raise InputError(
            f"The file's configuration has an entry {OURS!r} that is not what `prdit export-checkpoint` writes; "
            f"expected {list(_OURS_NEEDED)}. Remove it and give --axes, --window and --spacing-mm."
        )
    return record
