"""A stage whose output changes must say so by its recipe version (see tests/integration/golden.py)."""

from pathlib import Path
from typing import Any

import pytest

from storage.files import read_json
from tests.integration.golden import GOLDEN, compute

pytestmark = pytest.mark.slow

# Other processors round differently in the last bits; five training steps and a sampler carry that on.
TOLERANCE = {
    "ingest": (0, 0.5),
    "train-local": (1e-3, 0),
    "train-global": (1e-3, 0),
    "sample": (1e-2, 1.0),
    "evaluate": (0.02, 1e-3),
}


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compute(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", sorted(read_json(GOLDEN)))
def test_output_moves_only_with_the_recipe(now: dict[str, Any], stage: str) -> None:
    golden = read_json(GOLDEN)
    hint = "record the values with `python -m tests.integration.golden`"
    assert now[stage]["recipe"] == golden[stage]["recipe"], f"new recipe of {stage}: {hint}"
    rel, absolute = TOLERANCE.get(stage, (0, 0))
    values, expected = flat(now[stage]["values"]), flat(golden[stage]["values"])
    assert values.keys() == expected.keys(), f"{stage} makes something else: raise its recipe version, then {hint}"
    for key, value in expected.items():
        wanted = pytest.approx(value, rel=rel, abs=absolute) if isinstance(value, int | float) else value
        assert values[key] == wanted, f"{stage} {key} moved: raise its recipe version, then {hint}"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one level of named leaves."""
    if isinstance(value, dict):
        pairs: Any = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    return {key: leaf for name, item in pairs for key, leaf in flat(item, f"{prefix}/{name}").items()}


def test_comparison_sees_a_moved_value(tmp_path: Path) -> None:
    golden = read_json(GOLDEN)
    values = flat(golden["train-local"]["values"])
    key, value = next(iter(values.items()))
    assert value * 1.002 != pytest.approx(value, rel=TOLERANCE["train-local"][0], abs=0), key
