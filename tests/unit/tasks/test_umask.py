"""Artifacts follow the umask, as any program's files do: a group can be given access, or not."""

import subprocess
import sys
import textwrap
from pathlib import Path

PIECE = """
    import os, sys
    from pathlib import Path
    os.umask(0o027)
    from flows.config import load_config
    from flows.record import new_run_directory
    from storage.artifacts import Ref
    from storage.patient_key import load_patient_key
    from storage.tracking import Tracker
    from tasks.average.config import AverageConfig
    from tasks.average.run import average_stage
    from tasks.run.stage import RunContext
    from tasks.sample.config import SampleConfig
    from tasks.sample.stage import sample_stage
    from tasks.train.stage import train
    from tests.factories import global_config, local_config, make_data

    def quiet(done, total): pass

    root = Path(sys.argv[1])
    store, split = make_data(root / "data")
    load_patient_key(root / "keys" / "patient.key")
    new_run_directory(root / "work", load_config("tiny", {}))
    context = RunContext(workdir=root / "work", tracking_uri=f"sqlite:///{root / 'tracking' / 'mlflow.db'}")
    inputs = {"snapshot": store, "split": split}
    short = {"steps": 2, "val_every": 2, "select": "best", "ema_snapshots": 1}
    local = train("local", inputs, local_config(**short), context, quiet).ref
    average_stage(local, AverageConfig(sigma_rel=0.1), context, quiet)
    above = train("global", inputs | {"start": local}, global_config(steps=1), context, quiet).ref
    sampling = {"num_volumes": 1, "num_steps": 2, "device": "cpu", "num_threads": 1}
    sample_stage(above, SampleConfig.model_validate(sampling), context, quiet)
    context.flush()
"""


def test_files_0640_folders_0750_key_0600(tmp_path: Path) -> None:
    root = tmp_path / "piece"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PIECE), str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    modes = {path.relative_to(root).as_posix(): path.stat().st_mode & 0o777 for path in root.rglob("*")}
    kinds = {name: (root / name).is_dir() for name in modes}
    key = "keys/patient.key"
    assert modes.pop(key) == 0o600
    assert {name: oct(mode) for name, mode in modes.items() if mode != (0o750 if kinds[name] else 0o640)} == {}
    suffixes = {Path(name).suffix for name in modes}
    assert {".safetensors", ".json", ".jsonl", ".yaml", ".db", ".lock", ".log", ".gz"} <= suffixes, suffixes
    assert any(name.startswith("tracking/mlflow-artifacts/") for name in modes)


def test_nothing_changes_permissions_afterwards() -> None:
    """CIFS and some FUSE file systems refuse chmod."""
    repository = Path(__file__).resolve().parents[3]
    code = [
        path for room in ("flows", "tasks", "storage", "prdit_models") for path in (repository / room).rglob("*.py")
    ]
    assert len(code) > 100
    calls = (
        "chmod(",
        "copymode(",
        "copy2(",
        "copystat(",
        "copytree(",
        "shutil.copy(",
        "mkstemp(",
        "NamedTemporaryFile(",
    )
    private = repository / "flows" / "faults.py"  # a traceback may name patients: its file is for its owner alone
    found = [
        str(path) for path in code if path != private for call in calls if call in path.read_text(encoding="utf-8")
    ]
    assert found == []
