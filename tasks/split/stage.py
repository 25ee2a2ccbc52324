"""Stage split: volume store -> roles by patient."""

from storage.artifacts import Ref
from tasks.split.config import SplitConfig
from tasks.split.run import RECIPE, ledger_agrees, split
from tasks.stage import RunContext, Stage, StageOutcome, run_stage

SPLIT = Stage("split", "split", RECIPE)


def split_stage(store: Ref, config: SplitConfig, context: RunContext) -> StageOutcome:
    """Give every committed volume a role; a cached split is used only while the store's ledger still agrees with it."""
    return run_stage(
        SPLIT,
        inputs={"store": store},
        config=config.key_fields(),
        context=context,
        body=lambda run: split(store.path, config, run.directory),
        still_valid=lambda directory: ledger_agrees(store.path, directory, config),
        logged=("split.json",),
    )
