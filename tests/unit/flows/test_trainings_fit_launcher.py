"""Trainings that the launcher cannot run are refused before a run reads a scan."""

from pathlib import Path
from typing import Any

import pytest

from flows.config import load_config
from flows.pipeline import run_through
from storage.errors import InputError
from tasks.run.launchers.launcher import LauncherError


@pytest.mark.parametrize(
    ("launcher", "error", "message"),
    [
        ({"ranks_per_node": 3}, InputError, r"^recipe\.global: batch_size 2 cannot be shared by 3 ranks"),
        ({"name": "slurm"}, LauncherError, r"^sbatch, squeue, scancel, scontrol are not on PATH"),
    ],
)
def test_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    places = {"source": str(tmp_path), "store": str(tmp_path / "store"), "workdir": str(tmp_path / "work")}
    recipe = {"local": {"batch_size": 3}, "global": {"batch_size": 2}}
    with pytest.raises(error, match=message):
        run_through(load_config("tiny", {**places, "recipe": recipe, "launcher": launcher}), "train-global")
    assert not list(tmp_path.iterdir())
