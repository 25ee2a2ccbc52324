"""Stage reconstruct: checkpoint and measurement -> samples, their mean and spread."""

from pathlib import Path
from statistics import fmean
from typing import Any

from prdit_models.diffusion.sampler import SAMPLERS
from prdit_models.families.family import FAMILIES
from prdit_models.inverse.guides import GUIDES
from storage.artifacts import Ref
from storage.documents.reconstruction import Reconstruction
from storage.documents.samples import Samples
from tasks.model.checkpoint import load_info
from tasks.reconstruct.config import ReconstructConfig
from tasks.reconstruct.measure import load_measurement
from tasks.reconstruct.run import RECIPE, check, reconstruct
from tasks.reconstruct.setting import owners_of
from tasks.run.progress import Advance
from tasks.run.runners import Runner
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage, with_owners
from tasks.sample.mask import mask_key


def _points(directory: Path) -> list[dict[str, Any]]:
    """Mean residual of the samples, and the accuracy of their mean where the truth is known."""
    found = Reconstruction.load(directory)
    values: dict[str, Any] = {"residual": fmean(found.residuals), "num_samples": found.num_samples}
    if found.truth is not None:
        mean = found.truth.accuracy["mean"]
        values |= {"psnr_db": mean.psnr_db, "ssim": mean.ssim, "error_hu": mean.error_hu["all"]}
        values |= {f"coverage_{float(level):.0%}".rstrip("%"): share for level, share in found.truth.coverage.items()}
    return [{"step": 0} | values]


# pictures of the measured patient stay here: MLflow gets figures and settings
RECONSTRUCT = Stage("reconstruct", "samples", RECIPE, files=(Samples.NAME, Reconstruction.NAME), points=_points)


def reconstruct_stage(
    checkpoint: Ref,
    measurement: Ref,
    config: ReconstructConfig,
    context: RunContext,
    progress: Advance,
    *,
    runner: Runner | None = None,
) -> StageOutcome:
    """Draw volumes from a checkpoint towards a measurement.

    Args:
        checkpoint: what to draw from.
        measurement: what to draw towards, of stage measure.
        config: how.
        context: where the run works and reports.
        progress: called with (model evaluations done, total).
        runner: where volumes are drawn; default: in this process.
    Raises:
        InputError: they do not fit each other, before any work starts.
        RunnerError: what the runner needs is missing.
    """
    _, mask = check(checkpoint, measurement, config)
    if runner is not None:
        runner.check()

    def body(run: StageRun) -> None:
        reconstruct(checkpoint, measurement, config, run.directory, progress, runner=runner, mask=mask)

    owners = (
        FAMILIES.owners(load_info(checkpoint).family) | SAMPLERS.owners(config.sampler) | GUIDES.owners(config.guide)
    )
    owners |= owners_of(load_measurement(measurement)[0].operator)
    return run_stage(
        RECONSTRUCT,
        inputs={"checkpoint": checkpoint, "measurement": measurement},
        config=with_owners(mask_key(config, mask), owners),
        context=context,
        body=body,
    )
