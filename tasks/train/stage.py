"""The training stages as one function: check, launch, checkpoint reference."""

from storage.artifacts import Ref
from tasks.progress import Advance
from tasks.stage import RunContext, StageOutcome, StageRun, run_stage
from tasks.train.check import check_training
from tasks.train.config import TrainConfig
from tasks.train.launch import launch
from tasks.train.spec import TrainSpec, training_of


def train(
    store: Ref,
    split: Ref,
    config: TrainConfig,
    context: RunContext,
    progress: Advance,
    *,
    below: Ref | None = None,
) -> StageOutcome:
    """Train the stage whose settings are given.

    Args:
        store, split: what to train on.
        config: the stage's settings; its type selects the stage.
        context: where the run works and reports.
        progress: called with (step, steps).
        below: the checkpoint it starts from: stage 1's for stage 2, the model to refine for stage 3.

    Raises: ValueError: input that cannot be trained on, before any work starts.
    """
    check_training(store, split, below, config)
    training = training_of(config)
    stage = training.stage
    inputs = {"store": store, "split": split} | ({training.below: below} if below else {})

    def body(run: StageRun) -> Ref:
        provenance = run.provenance | {"inputs": {role: ref.model_dump() for role, ref in inputs.items()}}
        spec = TrainSpec(
            stage=stage.name,
            config=config.model_dump(mode="json"),
            store=store,
            split=split,
            below=below,
            directory=run.directory,
            provenance=provenance,
        )
        return launch(spec, run, progress)

    return run_stage(
        stage,
        inputs=inputs,
        config=config.key_fields(),
        context=context,
        body=body,
    )
