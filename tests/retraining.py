"""A small installation in which retrainings run in this process: phantoms, an inbox, trainings without processes of their own."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import tasks.train.stage
from flows.retrain import retrain
from flows.retrain_setup import Setup
from storage.artifacts import Ref
from storage.documents.promotion import Decision
from storage.inbox_ledger import Batch, Ledger
from storage.phantom.series import write_demo_data
from storage.registry import Registry
from tasks.inbox.config import Timing
from tasks.retrain.decisions import decisions
from tasks.retrain.rounds import Rounds
from tasks.train.spec import TrainSpec
from tests.factories import trained

POLICY: dict[str, Any] = {
    "min_new_volumes": 1,
    "min_new_share": None,
    "max_days": None,
    "window_hours": 0,
    "min_reference_volumes": 2,
    "num_noises": 2,
    "max_copy_rate": None,
    "drift": {"pixel_mm": [0.2, 10.0]},  # small phantoms have few and large pixels
}

_NOT_MEASURED = ("anatomy", "hu", "kid", "mmd", "ms_ssim", "prdc", "spectrum")  # nothing here depends on it


class Installation:
    """Folders of one installation below a root, and series that have not arrived yet.

    Args:
        root: an empty folder.
        num_patients: phantoms that may arrive.
    """

    def __init__(self, root: Path, num_patients: int = 10) -> None:
        self.root = root
        self.inbox, self.store, self.work, self.arrivals = (
            root / name for name in ("inbox", "store", "work", "arrivals")
        )
        write_demo_data(root / "all", num_patients=num_patients, small=True)
        self.inbox.mkdir()
        self.policy(**POLICY)

    def policy(self, **changes: Any) -> None:
        """Set the policy's file anew."""
        (self.root / "policy.yaml").write_text(yaml.safe_dump(POLICY | changes))

    def arrive(self, count: int) -> list[Path]:
        """Move the next series into the inbox."""
        waiting = sorted(path for path in (self.root / "all").iterdir() if path.is_dir())[:count]
        return [Path(shutil.move(path, self.inbox / path.name)) for path in waiting]

    def parameters(self, **recipe: Any) -> dict[str, Any]:
        """What the flow is called with; `recipe` are settings of both trainings."""
        overrides: dict[str, Any] = {
            "workdir": str(self.work),
            "split": {"val_fraction": 0.5},
            "evaluate": {"num_references": 0, "num_shown": 1, "metrics": dict.fromkeys(_NOT_MEASURED)},
            "recipe": {
                name: {"steps": 12, "val_every": 6, "checkpoint_every": 4} | recipe for name in ("local", "global")
            },
        }
        return {
            "configuration": "tiny",
            "inbox": str(self.inbox),
            "store": str(self.store),
            "policy": str(self.root / "policy.yaml"),
            "overrides": overrides,
            "arrivals": str(self.arrivals),
        }

    def run(self, **recipe: Any) -> dict[str, Any]:
        """One run of the flow; what it returns."""
        found: Any = retrain(**self.parameters(**recipe))
        return found

    def setup(self, **recipe: Any) -> Setup:
        """What a run would work with."""
        return Setup.of(**self.parameters(**recipe))

    @property
    def registry(self) -> Registry:
        """The registered model."""
        return self.setup().registry()

    @property
    def rounds(self) -> Rounds:
        """Records of retrainings."""
        return Rounds(self.work.resolve())

    def decisions(self) -> list[Decision]:
        """Decisions, oldest first."""
        return decisions(self.work / "decisions")

    def batches(self) -> list[Batch]:
        """Batches of the inbox."""
        with closing(Ledger(self.arrivals)) as ledger:
            return ledger.batches()


def without_waiting(patch: pytest.MonkeyPatch) -> None:
    """Let series be complete at once, and trainings run in this process."""
    patch.setattr(Setup, "timing", property(lambda self: Timing(quiet_s=0.0, settle_s=0.0)))
    trainings_here(patch)


def trainings_here(patch: pytest.MonkeyPatch) -> None:
    """Let trainings of flows that run in this process run in it too."""
    patch.setattr(tasks.train.stage, "launch", _trained_here)


def _trained_here(spec: TrainSpec, run: Any, progress: Callable[[int, int], None], launcher: Any) -> Ref:
    return trained(spec)
