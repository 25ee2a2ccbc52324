"""Oracle and product against the frozen numbers: a mistake made in both would pass every live comparison."""

import pytest
import torch

from tests.oracles import prdit_literal
from tests.parity.measure import Measure
from tests.parity.own.cases import CASES
from tests.parity.own.frozen import MACHINE, VALUES, against_frozen, frozen, summary

MAX_BYTES = 300_000


pytestmark = pytest.mark.usefixtures("one_thread")


def failed(measures: list[Measure]) -> list[str]:
    return [f"{m.what}: {m.error:.3g} > {m.tolerance:.3g}" for m in measures if not m.passed]


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    case = CASES[name]
    measures = against_frozen(case, case.oracle(), "oracle", MACHINE)
    measures += against_frozen(case, case.product(torch.float64), "product in float64", MACHINE + case.atol64)
    if case.in_float32:
        measures += against_frozen(case, case.product(torch.float32), "product in float32", MACHINE + case.atol)
    assert not failed(measures)


def test_the_file_holds_the_cases_and_is_small() -> None:
    assert list(frozen()) == list(CASES)
    assert VALUES.stat().st_size < MAX_BYTES
    assert {f"depth {depth}" for depth in range(1, 13)} <= set(CASES)


def test_a_change_of_the_oracle_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prdit_literal, "gelu_tanh", torch.nn.functional.gelu)
    case = CASES["depth 2"]
    assert failed(against_frozen(case, case.oracle(), "oracle", MACHINE))


def test_summary_takes_the_ends_and_the_norm() -> None:
    found = summary({"a": torch.arange(15.0)})["a"]
    assert found["values"] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert found["norm"] == pytest.approx(sum(k * k for k in range(15)) ** 0.5, rel=1e-8)
