"""prdit_models and its tests with other versions of PyTorch, and nothing else installed than NumPy, SciPy, safetensors and pytest.

`python -m tests.drills.torch_versions [VERSION ...]`; one JSON object on stdout. A VERSION is what pip takes after `torch==`
(2.14.1, 2.12.*), `newest` (that pip finds within pyproject.toml's bounds) or `installed` (what this interpreter has, nothing is
downloaded). Default: pyproject.toml's oldest and the newest. PyPI's builds for Linux are CUDA builds: 3 GB of downloads and
7 GB of disk each, removed afterwards; where an index has CPU builds, PIP_EXTRA_INDEX_URL names it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement

from tests.constraints import canonical, installed_closure
from tests.parity.location import REPOSITORY, parity_folder

TESTS = ("tests/unit/prdit_models", "tests/parity")
BESIDE_TORCH = ("numpy", "scipy", "safetensors", "pytest", "pytest-timeout")  # the last: pyproject.toml sets a timeout
# All the tests have of the repository: no tasks, no flows, of storage the phantoms' anatomy.
CARRIED = (
    "pyproject.toml",
    "prdit_models",
    "storage/__init__.py",
    "storage/phantom/__init__.py",
    "storage/phantom/anatomy.py",
    "tests/__init__.py",
    "tests/bench/__init__.py",
    "tests/bench/coverage.py",
    "tests/conftest.py",
    "tests/extractors.py",
    "tests/oracles",
    "tests/perturbations.py",
    "tests/phantoms.py",
    "tests/submodules.py",
    "tests/unit/__init__.py",
    *TESTS,
)
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import prdit_models, torch
names = [module.name for module in pkgutil.walk_packages(prdit_models.__path__, "prdit_models.")]
for name in names:
    importlib.import_module(name)
sys.stdout.write(json.dumps({"torch": str(torch.__version__), "modules": len(names)}))
"""


def run(root: Path, versions: Sequence[str] = (), select: str = "") -> dict[str, Any]:
    """Run the tests once per version, each in a virtual environment of its own; figures of what was found.

    Args:
        root: an empty folder; what is installed there is removed again.
        versions: as on the command line.
        select: pytest's `-k`; the test modules are all imported, whatever it leaves out.
    Returns: by version: torch's full version, number of modules imported, number of tests passed and skipped, seconds.
    Raises:
        AssertionError: tests failed; the message holds the figures of every version and the names of these tests.
        RuntimeError: no environment, a module that cannot be imported, or tests that cannot be collected; with the output.
    """
    for name in CARRIED:
        source, target = REPOSITORY / name, root / "repository" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    figures: dict[str, Any] = {}
    for version in versions or (_oldest(), "newest"):
        environment = root / "environment"
        try:
            figures[version] = _try(_environment(environment, version), root / "repository", select)
        finally:
            shutil.rmtree(environment, ignore_errors=True)
    assert not any(found["failed"] for found in figures.values()), json.dumps(figures)
    return figures


def _requirement(name: str) -> Requirement:
    """What pyproject.toml asks of a package."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return next(wanted for wanted in map(Requirement, texts) if canonical(wanted.name) == name)


def _oldest() -> str:
    (lower,) = [bound.version for bound in _requirement("torch").specifier if bound.operator == ">="]
    return f"{lower}.*"


def _environment(folder: Path, version: str) -> Path:
    """The interpreter of a new virtual environment with this torch."""
    python = folder / "bin" / "python"
    if version == "installed":
        _output([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        (site,) = (folder / "lib").glob("python*/site-packages")
        _link_installed(site)
        return python
    _output([sys.executable, "-m", "venv", str(folder)])
    torch = _requirement("torch") if version == "newest" else f"torch=={version}"
    wanted = [str(torch), *(str(_requirement(name)) for name in BESIDE_TORCH)]
    _output([str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", *wanted])
    return python


def _link_installed(site: Path) -> None:
    """Links to torch and the few beside it, with what they require, as this interpreter has them."""
    distributions: dict[str, metadata.Distribution] = {}
    for name in ("torch", *BESIDE_TORCH):
        distributions |= {name: metadata.distribution(name)} | installed_closure(name, frozenset())
    for distribution in distributions.values():
        # of `../../bin/tool` nothing, of `torch/nn/init.py` the folder torch
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():  # packages can share a folder
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))


def _try(python: Path, repository: Path, select: str) -> dict[str, Any]:
    began = time.monotonic()
    figures: dict[str, Any] = json.loads(_output([str(python), "-c", IMPORT_ALL], repository))
    report = repository / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *TESTS]
    _output(command + (["-k", select] if select else []), repository, codes=(0, 1))  # 1: tests failed
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return figures | {
        "passed": len(cases) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
        "seconds": round(time.monotonic() - began, 1),
    }


def _output(command: list[str], folder: Path | None = None, codes: tuple[int, ...] = (0,)) -> str:
    """Standard output of a command that does not see this interpreter's packages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"PYTHONNOUSERSITE": "1", "PRDIT_PARITY_DIR": str(parity_folder())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(command[:4])} … exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(run(Path(scratch), sys.argv[1:])) + "\n")
