"""Stage sample: checkpoint -> sample store."""

from storage.artifacts import Ref
from tasks.progress import Advance
from tasks.sample.config import SampleConfig
from tasks.sample.run import RECIPE, check, sample
from tasks.stage import RunContext, Stage, StageOutcome, run_stage

SAMPLE = Stage("sample", "samples", RECIPE)


def sample_stage(checkpoint: Ref, config: SampleConfig, context: RunContext, progress: Advance) -> StageOutcome:
    """Draw volumes from a global checkpoint.

    Raises: ValueError: a checkpoint that cannot be sampled from, before any work starts.
    """
    check(checkpoint, config)
    return run_stage(
        SAMPLE,
        inputs={"checkpoint": checkpoint},
        config=config.key_fields(),
        context=context,
        body=lambda run: sample(checkpoint, config, run.directory, progress),
        logged=("samples.json",),
    )
