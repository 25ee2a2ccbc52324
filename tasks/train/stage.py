"""Stages train-local and train-global as functions: check, launch, checkpoint reference."""

from storage.artifacts import Ref
from tasks.progress import Advance
from tasks.stage import RunContext, StageOutcome, StageRun, run_stage
from tasks.train.check import check_training
from tasks.train.config import TrainGlobalConfig, TrainLocalConfig
from tasks.train.launch import launch
from tasks.train.spec import GLOBAL, LOCAL, METRICS, TrainSpec


def train(
    store: Ref,
    split: Ref,
    config: TrainLocalConfig | TrainGlobalConfig,
    context: RunContext,
    progress: Advance,
    *,
    local: Ref | None = None,
) -> StageOutcome:
    """Train stage 1, or stage 2 where the configuration is stage 2's.

    Args:
        store, split: what to train on.
        config: the stage's settings; its type selects the stage.
        context: where the run works and reports.
        progress: called with (step, steps).
        local: the stage-1 checkpoint (stage 2 only).

    Raises: ValueError: input that cannot be trained on, before any work starts.
    """
    check_training(split, local, config)
    stage = LOCAL if isinstance(config, TrainLocalConfig) else GLOBAL
    inputs = {"store": store, "split": split} | ({"local": local} if local else {})

    def body(run: StageRun) -> Ref:
        provenance = run.provenance | {"inputs": {role: ref.model_dump() for role, ref in inputs.items()}}
        spec = TrainSpec(
            stage=stage.name,
            config=config.model_dump(mode="json"),
            store=store,
            split=split,
            local=local,
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
        logged=(METRICS, "checkpoint.json"),
    )
