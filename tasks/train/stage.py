"""The training stages as one function: check, launch, checkpoint reference."""

import logging

from prdit_models.diffusion.process import PROCESSES
from prdit_models.families.family import FAMILIES
from storage.artifacts import Ref
from tasks.run.launchers.config import LauncherConfig
from tasks.run.progress import Advance
from tasks.run.stage import RunContext, StageOutcome, StageRun, run_stage, with_owners
from tasks.train.check import check_batch, check_training
from tasks.train.conditions import nearly_numbers
from tasks.train.config import TrainingConfig
from tasks.train.extension import continue_shorter
from tasks.train.launch import launch
from tasks.train.spec import TrainSpec, training_stage

logger = logging.getLogger("prdit.train")


def train(
    name: str,
    inputs: dict[str, Ref],
    config: TrainingConfig,
    context: RunContext,
    progress: Advance,
    launcher: LauncherConfig | None = None,
) -> StageOutcome:
    """Train one training of a recipe.

    Args:
        name: of the training.
        inputs: `snapshot`, `split` and, where it starts from another training, `start`: that one's checkpoint; for a warm start
            `initial`: a checkpoint of an earlier training like this one, with whose weights it begins.
        config: of the training.
        context: where the run works and reports.
        progress: called with (step, steps).
        launcher: where it runs; default: one process on this machine.

    Raises:
        InputError: input that cannot be trained on, or not on so many ranks, before any work starts.
        LauncherError: the launcher cannot run it.
    """
    snapshot, split = inputs["snapshot"], inputs["split"]
    start, initial = inputs.get("start"), inputs.get("initial")
    for doubt in nearly_numbers(check_training(snapshot, split, start, config, initial).info.conditions):
        logger.warning("%s: %s", name, doubt)
    launcher = launcher or LauncherConfig()
    check_shares(config, launcher)
    stage = training_stage(name)

    def body(run: StageRun) -> Ref:
        provenance = run.provenance | {"inputs": {role: ref.model_dump() for role, ref in inputs.items()}}
        spec = TrainSpec(
            stage=stage.name,
            config=config,
            snapshot=snapshot,
            split=split,
            start=start,
            initial=initial,
            directory=run.directory,
            provenance=provenance,
        )
        continue_shorter(spec)
        return launch(spec, run, progress, launcher)

    settings = with_owners(config.key_fields(), made_by(config))
    return run_stage(stage, inputs=inputs, config=settings, context=context, body=body)


def check_shares(config: TrainingConfig, launcher: LauncherConfig) -> None:
    """Refuse a batch that the ranks of some number of nodes, with which the launcher may go on, cannot share.

    Raises: InputError, LauncherError.
    """
    for nodes in range(launcher.fewest_nodes, launcher.nodes + 1):
        check_batch(config, nodes * launcher.ranks)


def made_by(config: TrainingConfig) -> dict[str, str]:
    """Packages of others that decide what a training computes."""
    process = () if config.process is None else (config.process.name,)
    return FAMILIES.owners(config.family) | PROCESSES.owners(*process)
