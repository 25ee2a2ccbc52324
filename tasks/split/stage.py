"""Stage split: snapshot -> roles by patient."""

from pathlib import Path
from typing import Any

from storage.artifacts import Ref
from storage.documents.split import Split
from tasks.run.stage import RunContext, Stage, StageOutcome, run_stage
from tasks.split.config import SplitConfig
from tasks.split.run import RECIPE, ledger_agrees, split


def _points(directory: Path) -> list[dict[str, Any]]:
    """How many volumes and patients have which role."""
    document = Split.load(directory)
    return [
        {"step": 0}
        | {f"{role}_volumes": len(names) for role, names in document.roles.items()}
        | {f"{role}_patients": len(keys) for role, keys in document.patients.items()}
    ]


SPLIT = Stage("split", "split", RECIPE, files=(Split.NAME,), points=_points)


def split_stage(snapshot: Ref, config: SplitConfig, context: RunContext) -> StageOutcome:
    """Give every volume of a snapshot a role; a cached split is used only while the store's ledger still agrees with it."""
    return run_stage(
        SPLIT,
        inputs={"snapshot": snapshot},
        config=config.key_fields(),
        context=context,
        body=lambda run: split(snapshot, config, run.directory),
        still_valid=lambda directory: ledger_agrees(snapshot, directory, config),
    )
