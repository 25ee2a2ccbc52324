"""Weights on disk are what the safetensors library would write, and what it reads."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from storage.checkpoints import save_tensors
from storage.files import remove_leftovers, sha256_file

rng = np.random.default_rng(0)
TYPES = ["uint64", "int64", "float64", "complex64", "float32", "uint32", "int32", "float16"]
TYPES += ["uint16", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{name}.{i}": rng.integers(0, 2, (3, i)).astype(name) for name in TYPES for i in (1, 0, 2)},
        {'ä "quoted" \\ name': np.ones((2, 2), np.float32), "scalar": np.float64(3.5).reshape(())},
        {"transposed": np.arange(24, dtype=np.float32).reshape(2, 3, 4).T, "strided": np.arange(10)[::3]},
        {},
    ],
)
def test_the_bytes_are_the_librarys(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path / "weights.safetensors"
    digest = save_tensors(path, tensors)
    assert digest == sha256_file(path)
    assert path.read_bytes() == save({name: np.ascontiguousarray(v).reshape(v.shape) for name, v in tensors.items()})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name], value)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from storage import checkpoints
    pieces = checkpoints._pieces
    def killed(tensors):
        yield from pieces(tensors)
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoints._pieces = killed
    checkpoints.save_tensors(Path(sys.argv[1]), {"w": np.ones(1_000_000, np.float32)})
"""


def test_a_kill_leaves_nothing_that_the_next_run_cannot_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(path)], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.stat().st_size > 3_000_000
    assert remove_leftovers(tmp_path) == [left]
    assert not list(tmp_path.iterdir())
