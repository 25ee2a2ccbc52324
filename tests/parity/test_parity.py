"""Every entry of the parity set, by its family's row in the registry."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity import registry, sets
from tests.parity.location import is_parity_set, parity_folder
from tests.parity.measure import close, exact, relative


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry_id" not in metafunc.fixturenames:
        return
    folder = parity_folder()  # the fixture `parity_dir`, which collection cannot ask
    ids = list(sets.entries(folder)) if is_parity_set(folder) else ["(no parity set)"]
    metafunc.parametrize("entry_id", ids)


def test_entry(parity_dir: Path, entry_id: str, request: pytest.FixtureRequest) -> None:
    if "sampler_" in entry_id:  # thousands of evaluations of 4³ to 16³ voxels
        request.getfixturevalue("one_thread")
    entry = sets.entries(parity_dir)[entry_id]
    family = registry.family_of(entry_id)
    if family.status == "documentation":
        assert "arrays" not in entry, f"{entry_id} has arrays: it can be checked"
        return
    measures = registry.measure(parity_dir, entry)
    assert measures, f"{entry_id}: nothing was compared"
    failed = [f"{m.what}: {m.error:.3g} > {m.tolerance:.3g}" for m in measures if not m.passed]
    assert not failed, f"{entry_id}: " + "; ".join(failed)


def test_an_id_of_no_family_and_one_of_two_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match="no family"):
        registry.family_of("something_new")
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, registry.Family("fid_n*", "checked")))
    with pytest.raises(LookupError, match="exactly one row"):
        registry.family_of("fid_n64_d8")


def test_documentation_has_no_check_and_all_else_has() -> None:
    for family in registry.FAMILIES:
        computes = family.status in ("checked", "oracle-only")
        assert (family.check is not None) == computes, family.pattern


def test_measures_can_fail() -> None:
    assert not close("x", np.array([1.0, 2.0]), np.array([1.0, 2.1]), 1e-3).passed
    assert not close("x", np.array([np.nan]), np.array([0.0]), 1.0).passed
    assert not exact("x", np.array([1, 2]), np.array([1, 3])).passed
    assert not relative("x", 1.0, 1.1, 1e-3).passed
    small_element = close("x", np.array([0.2, 1e6]), np.array([0.1, 1e6]), 1e-6, 1e-5)
    assert not small_element.passed, "a large element must not lend its tolerance to a small one"


def test_the_weight_recipe_is_the_documented_formula() -> None:
    """Three numbers of one tensor by Python integers, independent of the vectorised code."""
    import hashlib

    mask = (1 << 64) - 1
    start = int.from_bytes(hashlib.sha256(b"seed/1:coarse.fc.weight").digest()[:8], "little")
    expected = []
    for index in range(3):
        z = (start + (index + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        expected.append(((z >> 40) * 2.0**-23 - 1.0) * 2.0 * np.sqrt(3.0 / 3.0))
    found = sets.recipe_tensor("coarse.fc.weight", (1, 3), "seed/1", 2.0)
    np.testing.assert_array_equal(found.numpy()[0], np.array(expected, dtype=np.float32))
