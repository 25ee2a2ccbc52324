"""Measure, then reconstruct: what the command and the flow share."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prdit_models.inverse.projection import Projection
from storage.documents.reconstruction import Reconstruction
from storage.errors import InputError
from storage.snapshots import newest
from storage.sources.one_scan import find_scan
from storage.sources.source import Limits
from storage.volume_store import VolumeStore
from tasks.reconstruct.config import ReconstructConfig
from tasks.reconstruct.measure import ArrayFile, ScanFiles, Source, StoredVolume, measure_stage
from tasks.reconstruct.radiographs import RadiographFiles
from tasks.reconstruct.run import PAGE
from tasks.reconstruct.setting import Setting
from tasks.reconstruct.stage import reconstruct_stage
from tasks.run.progress import Advance
from tasks.run.stage import RunContext, StageOutcome

if TYPE_CHECKING:
    from flows.config import PipelineConfig
    from storage.artifacts import Ref

_ARRAY = ".npy"
_COMPARED = ("guide", "strength", "num_volumes", "sampler", "num_steps", "output", "seed", "level")
_LONGEST = 250  # characters of a value: the pixels of a mask are no setting to compare by
RunStage = Callable[[str, Callable[[Advance], StageOutcome]], StageOutcome]


@dataclass(frozen=True)
class Wanted:
    """What is to be reconstructed.

    Attributes:
        measurement: file, folder, or with `volume` a volume store.
        checkpoint: of the model, verified.
        operator: name and settings.
        how: volumes are drawn.
        volume: id of the volume that is measured by the operator itself; empty: none.
        noise_seed: of the noise of a simulated measurement.
    """

    measurement: Path
    checkpoint: "Ref"
    operator: Mapping[str, Any]
    how: ReconstructConfig
    volume: str = ""
    noise_seed: int = 0

    def measured(self, setting: Setting, limits: Limits) -> tuple[Source, Mapping[str, Any]]:
        """Where the measurement comes from, and by which operator; radiographs say themselves where detectors stood.

        Args:
            setting: of the model.
            limits: of ingest; those for a scan's values count here.
        Raises: InputError, StorageError: nothing is there that could be one.
        """
        place = self.measurement
        is_store = (place / "zarr.json").is_file()
        elsewhere = self.volume or place.suffix == _ARRAY or is_store
        if self.operator.get("name") == Projection.name and not elsewhere:
            films = RadiographFiles.of(place, self.operator, setting)
            return films, films.operator
        return self._source(limits, is_store), self.operator

    def _source(self, limits: Limits, is_store: bool) -> Source:
        place = self.measurement
        if self.volume:
            if not is_store:
                raise InputError(
                    f"volume {self.volume!r} is one of a store, and {place} is none. Give the volume store, or leave the volume "
                    "out for a measurement from files."
                )
            return StoredVolume(newest(VolumeStore.open(place)), self.volume, self.noise_seed)
        if is_store:
            raise InputError(
                f"{place} is a volume store. Name the volume of it that is to be measured: --volume ID (`prdit ls {place} "
                "--volumes` lists them)."
            )
        if place.suffix == _ARRAY and place.is_file():
            return ArrayFile(place)
        own = Limits(max_jitter=limits.max_jitter, max_hu=limits.max_hu, nan=limits.nan, synthetic=limits.synthetic)
        return ScanFiles(find_scan(place), own)  # parts of a chest are measured, too


def settings_of(
    config: "PipelineConfig",
    explained: Callable[[str], AbstractContextManager[None]],
    given: Mapping[str, Any],
) -> ReconstructConfig:
    """How volumes are drawn: as the configuration's stage sample says, but for what is given; defaults are the reconstruction's.

    Args:
        config: of the run.
        explained: turns pydantic's account of wrong settings into ours.
        given: by the names of `ReconstructConfig`; None: not given.
    Raises: ConfigError: settings are wrong.
    """
    values = config.sample.model_dump(exclude_unset=True) | {key: one for key, one in given.items() if one is not None}
    with explained("reconstruct"):
        return ReconstructConfig.model_validate(values)


def parameters(wanted: Wanted) -> dict[str, Any]:
    """What MLflow shows of the settings, by which runs are compared: operator, guide and sampler; no paths, no long lists."""
    values = {f"measure.operator.{key}": value for key, value in wanted.operator.items()}
    how = wanted.how.model_dump(mode="json")
    values |= {f"reconstruct.{key}": how[key] for key in _COMPARED}
    values |= {f"reconstruct.guide_settings.{key}": value for key, value in how["guide_settings"].items()}
    return {key: value for key, value in values.items() if value is not None and len(str(value)) <= _LONGEST}


def run(config: "PipelineConfig", wanted: Wanted, context: RunContext, run_stage: RunStage) -> dict[str, Any]:
    """Both stages; returns what there is to say as JSON values.

    Args:
        config: says which runner.
        wanted: what.
        context: where they work and report.
        run_stage: runs a stage by its name.
    Raises: InputError, StorageError, RunnerError, ComputationError: see the stages.
    """
    if wanted.checkpoint.kind != "checkpoint":
        raise InputError(
            f"A reconstruction needs a checkpoint (--model), got a {wanted.checkpoint.kind} at {wanted.checkpoint.uri}."
        )
    setting, limits = Setting.of(wanted.checkpoint, wanted.how), config.ingest.limits
    context = context.model_copy(update={"parameters": parameters(wanted)})
    measured = run_stage("measure", lambda progress: measure_stage(*wanted.measured(setting, limits), setting, context))
    outcome = run_stage(
        "reconstruct",
        lambda progress: reconstruct_stage(
            wanted.checkpoint, measured.ref, wanted.how, context, progress, runner=config.runner
        ),
    )
    return outcome.model_dump(mode="json") | {
        "measurement": measured.ref.model_dump(mode="json"),
        "reconstruction": Reconstruction.load(outcome.ref.path).to_json(),
        "page": str(outcome.ref.path / PAGE),
    }


def figures_table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for a page: accuracy by volume where the truth is known, else the samples' mean residual.

    Args:
        found: the document `Reconstruction`, as JSON values.
    """
    residual = f"residual ({found['unit']})"
    if not found["truth"]:
        return [{"volumes": found["num_samples"], residual: round(fmean(found["residuals"]), 3)}]
    return [
        {
            "volume": name,
            "PSNR (dB)": round(each["psnr_db"], 2),
            "SSIM": round(each["ssim"], 3),
            "error (HU)": round(each["error_hu"]["all"], 1),
            residual: round(each["residual"], 3),
        }
        for name, each in found["truth"]["accuracy"].items()
    ]
