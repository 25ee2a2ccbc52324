"""Stage sample: checkpoint -> sample store."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from prdit_models.diffusion.sampler import SAMPLERS
from prdit_models.families.family import FAMILIES
from storage.artifacts import Ref
from storage.documents.samples import Samples
from tasks.model.checkpoint import load_info
from tasks.run.progress import Advance
from tasks.run.runners import Runner
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage, with_owners
from tasks.sample.config import SampleConfig
from tasks.sample.mask import mask_key
from tasks.sample.run import RECIPE, check, sample
from tasks.sample.watch import thumbnail

Publish = Callable[[bytes, str], None]


def _points(directory: Path) -> list[dict[str, Any]]:
    """Mean shares of voxels outside int16 and outside the window, of plausible volumes, and counts."""
    samples = Samples.load(directory)
    shares = {name: fmean(getattr(samples, name)) for name in ("clipped_fraction", "outside_window_fraction")}
    known = [verdict.plausible for verdict in samples.verdicts if verdict.plausible is not None]
    if known:
        shares["plausible_share"] = fmean(known)
    counts = {"num_redrawn": samples.redraw.num_redrawn, "num_excluded": len(samples.excluded)}
    return [{"step": 0} | shares | counts]


SAMPLE = Stage("sample", "samples", RECIPE, files=(Samples.NAME,), points=_points)


def sample_stage(
    checkpoint: Ref,
    config: SampleConfig,
    context: RunContext,
    progress: Advance,
    *,
    runner: Runner | None = None,
    publish: Publish | None = None,
) -> StageOutcome:
    """Draw volumes from a checkpoint.

    Args:
        checkpoint: what to draw from.
        config: how.
        context: where the run works and reports.
        progress: called with (model evaluations done, total).
        runner: where volumes are drawn; default: in this process.
        publish: given pictures while it runs, as small JPEGs with a caption.

    Raises:
        InputError: a checkpoint that cannot be sampled from, before any work starts.
        RunnerError: what the runner needs is missing.
    """
    mask = check(checkpoint, config)
    if runner is not None:
        runner.check()

    def body(run: StageRun) -> None:
        def show(picture: Path, count: int) -> None:
            if run.tracker:
                run.tracker.log_image(run.run_id, picture, key="sample/volumes", step=count)
            if publish:
                publish(thumbnail(picture), f"The newest of {count} of {config.num_volumes} generated volumes")

        seen = show if run.tracker or publish else None
        sample(checkpoint, config, run.directory, progress, runner=runner, show=seen, mask=mask)

    return run_stage(
        SAMPLE,
        inputs={"checkpoint": checkpoint},
        config=with_owners(
            mask_key(config, mask), FAMILIES.owners(load_info(checkpoint).family) | SAMPLERS.owners(config.sampler)
        ),
        context=context,
        body=body,
    )
