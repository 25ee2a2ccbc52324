"""Components of the check's parts: limits that separate right from wrong, batches by the plan, rates by name, rows and tables."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from prdit_models.cards import peak_tflops
from prdit_models.networks.config import model_config
from prdit_models.networks.linear import Linear
from prdit_models.plan import Memory, Work, memory_of, of_network
from tests.gpu_check import memory, own, steps, training
from tests.gpu_check.__main__ import run_part
from tests.gpu_check.parity_limits import device_limit
from tests.gpu_check.parts import Part
from tests.gpu_check.report import PartResult, Row, compared, measured, part_lines, row_from_dict, row_to_dict, skipped
from tests.gpu_check.setting import Setting
from tests.parity.own.cases import CASES

# -- limits separate right from wrong ----------------------------------------------------------------------------------


def _to_tf32(x: Tensor) -> Tensor:
    """Rounded to ten bits of mantissa, as TF32 takes the inputs of a product."""
    return ((x.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_products_in_tf32_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(torch.device("cpu"), True, float("inf"))
    case = CASES["depth 2"]
    reference = case.oracle()
    assert all(measure.passed for measure in own._measures(setting, "fp32", case, reference))

    def forward(self: Linear, input: Tensor) -> Tensor:
        return torch.nn.functional.linear(_to_tf32(input.contiguous()), _to_tf32(self.weight), self.bias)

    monkeypatch.setattr(Linear, "forward", forward)
    errors = [measure.error / measure.tolerance for measure in own._measures(setting, "fp32", case, reference)]
    assert min(errors) > 3.0  # each of coarse, fine and sum


def test_a_training_with_another_optimiser_would_be_found() -> None:
    """Half of the rate: a loss that falls as well, but does not follow."""
    setting = Setting(torch.device("cpu"), True, float("inf"))
    torch.manual_seed(0)
    start = training.PRDiT(training.TINY_CONFIG)
    start.freeze_local(False)
    volumes = training.phantoms(4, training.TINY_CONFIG.volume_size)
    right = training.window_means(training.losses(setting, copy.deepcopy(start), volumes, "fp32", 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LR", training.LR / 2)
        wrong = training.window_means(training.losses(setting, copy.deepcopy(start), volumes, "fp32", 20))
    assert max(abs(a / b - 1) for a, b in zip(wrong, right, strict=True)) > training.LIMITS["bf16"]


def test_limits_grow_with_the_largest_value_and_equality_stays_equality() -> None:
    assert device_limit(1e-5, 2.0) == pytest.approx(8 * (1e-5 + 2e-5))
    assert device_limit(0.0, 0.0) == 0.0


def test_a_plan_that_is_a_quarter_off_is_found() -> None:
    plan = Memory(weights=600, activations=150, allocator=40)
    assert memory.planned_tensors(plan) == 750
    assert memory.plan_error(plan, memory.Peak(tensors=1000)) == pytest.approx(0.25)
    assert memory.plan_error(plan, memory.Peak(tensors=1000)) > memory.PLAN_LIMIT


# -- what only a GPU runs, with a simulated memory --------------------------------------------------------------------

GIB = 2**30
ON_CUDA = Setting(torch.device("cuda"), False, float("inf"))


@pytest.mark.parametrize("what", ["train", "sample"])
def test_the_batch_is_the_largest_power_of_two_the_plan_fits_into_what_is_free(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As counted by the plan of that batch and of the next: of a card that another process uses in part."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (6 * GIB, 80 * GIB))
    work, config = Work("global", what, "bf16"), model_config("XS/12/4", 64)
    batch = memory.largest_batch(ON_CUDA, work, config, 512)
    assert 1 < batch < 512
    assert batch & (batch - 1) == 0
    assert memory_of(work, of_network(config), batch, "cuda").total <= 6 * GIB
    assert memory_of(work, of_network(config), 2 * batch, "cuda").total > 6 * GIB
    assert memory.largest_batch(ON_CUDA, work, config, 4) == 4
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, 80 * GIB))
    with pytest.raises(RuntimeError, match="not even one volume of 64³"):
        memory.largest_batch(ON_CUDA, work, config, 512)


def test_memory_that_runs_out_is_a_difference_and_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "largest_batch", lambda *_: 16)
    tried: list[int] = []

    def pretended(_s: Any, what: str, _w: Any, _c: Any, batch: int, _r: float) -> Row:
        tried.append(batch)
        if batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compared(f"{what}, batch {batch}", 0.01, 0.15)

    monkeypatch.setattr(steps, "_measured", pretended)
    work = Work("global", "train", "bf16")
    found = list(steps._rows_of(ON_CUDA, "cell", work, model_config("XS/12/4", 64), 1.0))
    assert tried == [16, 8, 4]
    assert [(row.what, row.verdict) for row in found] == [
        ("cell, batch 16", "differs"),
        ("cell, batch 8", "differs"),
        ("cell, batch 4", "agrees"),
    ]
    assert "the plan says it fits" in found[0].note


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0, 66.9),
        ("NVIDIA H100 PCIe", 756.0, 51.2),
        ("NVIDIA H200", 989.0, 66.9),
        ("NVIDIA A100-SXM4-80GB", 312.0, 19.5),
        ("NVIDIA A100 80GB PCIe", 312.0, 19.5),
        ("NVIDIA L40S", 362.0, 91.6),
        ("NVIDIA L40", 181.0, 90.5),
        ("NVIDIA L4", 121.0, 30.3),
        ("NVIDIA A10G", 70.0, 35.0),
        ("NVIDIA A10", 125.0, 31.2),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("cpu", None, None),
    ],
)
def test_peak_rates_by_name(name: str, bf16: float | None, fp32: float | None) -> None:
    assert (peak_tflops(name, "bf16"), peak_tflops(name, "fp32")) == (bf16, fp32)


def test_rows_survive_json_and_numbers_that_are_none_do_not_agree() -> None:
    row = compared("a", float("nan"), 1.0, group="g", seconds=float("inf"))
    assert row.verdict == "differs"
    text = json.dumps(row_to_dict(row), allow_nan=False)
    assert row_from_dict(json.loads(text)).verdict == "differs"
    plain = compared("a", 0.5, 1.0, note="n", batch=3)
    assert row_from_dict(json.loads(json.dumps(row_to_dict(plain)))) == plain


def test_a_part_is_as_bad_as_its_worst_row_and_its_table_names_it() -> None:
    rows = (
        compared("one", 0.1, 1.0, group="set"),
        compared("two", 3.0, 1.0, group="set"),
        measured("rate", tflops=2.5),
    )
    part = PartResult("own", "our set", rows, 4.2)
    assert part.verdict == "differs"
    lines = part_lines(part)
    assert lines[0] == "own: our set (4 s): differs"
    assert "1 of 2 agree; nearest to its limit: two, 3 of 1" in lines[1]
    assert lines[2].split()[:2] == ["two", "differs"]
    assert "tflops 2.5" in lines[3]
    assert PartResult("x", "y", (skipped("a", "budget"), measured("b")), 1.0).verdict == "measured"
    assert PartResult("x", "y", (skipped("a", "budget"),), 1.0).verdict == "skipped"
    with pytest.raises(ValueError, match="fine"):
        Row("a", "fine")


def test_a_part_that_cannot_be_imported_fails_with_its_reason() -> None:
    result = run_part("gone", Part("tests.gpu_check.no_such_part", "gone", 60.0), tiny=True, seconds=60.0)
    assert result.verdict == "failed"
    assert result.reason.startswith("ModuleNotFoundError: No module named 'tests.gpu_check.no_such_part'")
