"""Stage sample: checkpoint -> sample store."""

from pathlib import Path
from statistics import fmean
from typing import Any

from prdit_models.diffusion.sampler import SAMPLERS
from prdit_models.families.family import FAMILIES
from storage.artifacts import Ref
from storage.documents.samples import Samples
from tasks.model.checkpoint import load_info
from tasks.run.progress import Advance
from tasks.run.stage import RunContext, Stage, StageOutcome, run_stage, with_owners
from tasks.sample.config import SampleConfig
from tasks.sample.run import RECIPE, check, sample


def _points(directory: Path) -> list[dict[str, Any]]:
    """Mean shares of voxels outside int16 and outside the window."""
    samples = Samples.load(directory)
    shares = {name: getattr(samples, name) for name in ("clipped_fraction", "outside_window_fraction")}
    return [{"step": 0} | {name: fmean(values) for name, values in shares.items()}]


SAMPLE = Stage("sample", "samples", RECIPE, files=(Samples.NAME,), points=_points)


def sample_stage(checkpoint: Ref, config: SampleConfig, context: RunContext, progress: Advance) -> StageOutcome:
    """Draw volumes from a checkpoint.

    Raises: InputError: a checkpoint that cannot be sampled from, before any work starts.
    """
    check(checkpoint, config)
    return run_stage(
        SAMPLE,
        inputs={"checkpoint": checkpoint},
        config=with_owners(
            config.key_fields(), FAMILIES.owners(load_info(checkpoint).family) | SAMPLERS.owners(config.sampler)
        ),
        context=context,
        body=lambda run: sample(checkpoint, config, run.directory, progress),
    )
