"""Gates: what passes, what fails, and what a training without a finite loss counts as."""

import math
from pathlib import Path

import pytest
import torch

from storage.artifacts import Ref
from storage.documents.checkpoint import Checkpoint, Gates
from storage.errors import DamagedArtifactError
from tasks.train.best import BestWeights
from tasks.train.gates import GatesConfig, check_gates
from tasks.train.state import TrainedArrays
from tests.unit.storage.documents.examples import EXAMPLES

CONFIG = GatesConfig(max_loss_ratio={"local": 0.5}, below_start=("global",))
STARTS = {"local": None, "global": "local"}


def checkpoint(folder: Path, first: float | None, last: float | None, val: float | None) -> Ref:
    gates = Gates(first_loss=first, last_loss=last, val_loss=val, val_loss_ema=val, val_loss_ema_parts={})
    example = EXAMPLES["checkpoint"]
    assert isinstance(example, Checkpoint)
    example.model_copy(update={"gates": gates}).save(folder)
    return Ref(kind="checkpoint", uri=str(folder), digest="sha256:0")


@pytest.mark.parametrize(
    ("local", "above", "failed"),
    [
        ((1.0, 0.4, 0.3), (1.0, 0.2, 0.2), []),
        ((1.0, 0.6, 0.3), (1.0, 0.2, 0.2), ["local ended at 0.60"]),
        ((1.0, 0.0, 0.3), (1.0, 0.2, 0.3), ["validation loss of global, 0.30000, is not below"]),
        ((None, None, None), (1.0, 0.2, 0.2), ["local ended at inf"]),
        ((1.0, 0.4, 0.3), (1.0, 0.2, None), ["validation loss of global, inf, is not below"]),
    ],
)
def test_what_fails(
    tmp_path: Path,
    local: tuple[float | None, float | None, float | None],
    above: tuple[float | None, float | None, float | None],
    failed: list[str],
) -> None:
    made = {"local": checkpoint(tmp_path / "local", *local), "global": checkpoint(tmp_path / "global", *above)}
    figures, said = check_gates(CONFIG, made, STARTS)
    assert len(said) == len(failed)
    assert all(part in sentence for part, sentence in zip(failed, said, strict=True))
    assert figures["local_val_loss_ema"] == local[2]
    assert figures.get("local_loss_ratio") == (None if local[0] is None or local[1] is None else local[1] / local[0])


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    best, held = BestWeights(tmp_path), TrainedArrays(module, {})
    best.offer(0, {"loss": 1.0}, {"loss": math.nan}, held)
    assert best.record is None
    with pytest.raises(DamagedArtifactError, match="no validation had a finite loss"):
        best.take()
    best.offer(1, {"loss": math.inf}, {"loss": 2.0, "part": math.nan}, held)
    best.offer(2, {"loss": 1.0}, {"loss": 3.0}, held)
    assert best.take()[:3] == (1, {}, {"loss": 2.0})
