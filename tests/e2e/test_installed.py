"""prdit from its wheel, in an empty folder: no checkout, no prefect.yaml, nothing but what is installed."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from flows.demo import _parameters as demo_parameters
from storage.files import read_json

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

ROOMS = ("flows", "tasks", "prdit_models", "storage")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Built from a copy of the sources, since building leaves files beside them."""
    root = tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        shutil.copytree(repository / room, root / "source" / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, root / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(root / "source")]
    subprocess.run(command, check=True)
    (found,) = root.glob("prdit-*.whl")
    return found


def test_the_wheel_has_every_file_of_the_packages(wheel: Path, repository: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for room in ROOMS for path in (repository / room).rglob("*"))
    assert packed == {
        path.relative_to(repository).as_posix() for path in files if path.is_file() and path.suffix != ".pyc"
    }


def test_up_run_demo_and_down_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "folder"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    folder.mkdir()
    foreign = ("PREFECT_", "MLFLOW_", "PYTHONPATH")
    env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    env["PYTHONPATH"] = str(site)  # before the checkout that this Python knows

    def run(*command: str, **variables: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=env | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    prdit, prefect = str(site / "bin" / "prdit"), str(Path(sys.executable).with_name("prefect"))
    imported = run(sys.executable, "-c", "import flows, storage; print(flows.__file__, storage.__file__)")
    assert [Path(path).parents[1] for path in imported.split()] == [site, site]
    run(prdit, "demo-data", "scans", "--small", "--patients", "3")
    try:
        (api_url,) = re.findall(r"export PREFECT_API_URL=(\S+)", run(prdit, "up"))
        # The demo's store and work, by paths that start from the folder `up` was called in.
        demo = demo_parameters(folder / "scans", "tiny", folder / ".prdit")
        store, workdir = (os.path.relpath(path, folder) for path in (demo["store"], demo["overrides"]["workdir"]))
        given = {
            "configuration": "tiny",
            "source": "scans",
            "store": store,
            "overrides": json.dumps({"workdir": workdir}),
        }
        run(
            *(prefect, "--no-prompt", "deployment", "run", "prdit/full-pipeline", "--watch"),
            *(word for name, value in given.items() for word in ("--param", f"{name}={value}")),
            PREFECT_API_URL=api_url,
        )
        record = read_json(folder / workdir / "runs" / "latest.json")
        assert record["error"] is None
        provenance = read_json(Path(record["report"]).with_name("provenance.json"))
        assert "+" not in provenance["code_version"]  # no commit: the code is of no checkout
        said = run(prdit, "demo", "--config", "tiny", "--dicom", "scans")
        assert f"PREFECT_API_URL={api_url} prefect deployment run" in said  # the servers that are up
        found = re.findall(r"(?m)^  (\S+) +found, verified$", said)
        assert (
            found == list(record["stages"]) == ["ingest", "split", "train-local", "train-global", "sample", "evaluate"]
        )
        assert record["report"] in said
    finally:
        stopped = json.loads(run(prdit, "down", "--json").splitlines()[-1])["stopped"]
    assert len(stopped) >= 4  # the demo left up what it found up
    assert [pid for pid in stopped if psutil.pid_exists(pid)] == []
    assert {path.name for path in folder.iterdir()} == {"scans", ".prdit"}
