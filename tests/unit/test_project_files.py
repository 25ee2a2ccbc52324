"""The project's own files agree with each other, and its promises about licences hold."""

import os
import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from flows.services import DEPLOYMENTS
from flows.stages import stage_names
from tests.constraints import canonical, installed_closure
from tests.licences import core_licences, is_copyleft, listed


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in found}) == len(found), "a package is listed twice"
    return dict(found)


def normal(text: str) -> tuple[str, tuple[str, ...], str]:
    requirement = Requirement(text)
    return canonical(requirement.name), tuple(sorted(requirement.extras)), str(requirement.specifier)


def test_environment_yml_has_pyproject_names_and_bounds(repository: Path, project: dict[str, Any]) -> None:
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert {item.partition(">")[0] for item in conda} == {"python", "pip"}
    python = next(item for item in conda if item.startswith("python"))
    assert Requirement(python).specifier == Requirement(f"python{project['requires-python']}").specifier
    named = sorted(normal(item) for item in pip if not item.startswith("-"))
    for_gpus = project["optional-dependencies"]["gpu"]  # the file is for machines with one; `make` leaves the extra out
    assert [normal(item)[0] for item in for_gpus] == ["xformers"]
    assert named == sorted(normal(item) for item in [*project["dependencies"], *for_gpus])
    assert [item for item in pip if item.startswith("-")] == ["--constraint constraints.txt", "--editable ."]


def test_constraints_are_plain_versions_within_bounds(project: dict[str, Any], pins: dict[str, str]) -> None:
    assert [version for version in pins.values() if Version(version).local] == []
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        version = pins[canonical(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{text} but constraints.txt has {version}"


def test_constraints_cover_everything_that_is_pulled_in(pins: dict[str, str]) -> None:
    pulled_in = installed_closure("prdit", frozenset({"dev"}))
    platform_only = {
        name for name in pulled_in if name.startswith(("nvidia-", "cuda-", "triton"))
    }  # a CUDA torch pins these
    assert sorted(set(pulled_in) - platform_only - set(pins)) == []


def test_no_gpl_in_the_core_set() -> None:
    licences = core_licences()
    assert len(licences) > 100  # the walk is transitive
    accepted = {"text-unidecode"}  # a choice of licences: THIRD_PARTY.md says which
    assert {name: text for name, text in licences.items() if is_copyleft(text) and name not in accepted} == {}
    assert "pylibjpeg-libjpeg" not in licences
    assert [name for name, text in licences.items() if text == "unknown"] == []


@pytest.mark.parametrize(
    ("text", "copyleft"),
    [
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-2.1", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("MIT", False),
        ("MPL-2.0", False),
    ],
)
def test_what_counts_as_copyleft(text: str, copyleft: bool) -> None:
    assert is_copyleft(text) is copyleft


def test_third_party_table_is_complete() -> None:
    missing = sorted(set(core_licences()) - set(listed()))
    platform_only = ("nvidia-", "cuda-", "triton")
    assert [name for name in missing if not name.startswith(platform_only)] == [], "run make third-party"


def test_the_checkouts_deployments_are_the_installed_ones(repository: Path) -> None:
    assert (repository / "prefect.yaml").read_text() == DEPLOYMENTS.read_text()


def test_stages_are_the_pipeline_with_another_end() -> None:
    """One deployment per stage; the flow's own defaults are what the form shows but for the stage."""
    content = yaml.safe_load(DEPLOYMENTS.read_text())
    stages = [item for item in content["deployments"] if "stage" in item["tags"]]
    assert [item["name"] for item in stages] == list(stage_names())
    assert all(item["parameters"] == {"stage": item["name"]} for item in stages)
    for item in content["deployments"]:  # entry points are paths of modules: in a checkout and installed
        assert item["entrypoint"] in (
            "flows.pipeline.pipeline",
            "flows.retrain.retrain",
            "flows.maintenance.maintenance",
            "flows.benchmark.benchmark",
            "flows.reconstruct.reconstruct",
        )
    assert content["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $PRDIT_HOME }}"}}]


def test_every_package_is_listed(repository: Path) -> None:
    """A package that is not named in pyproject.toml would be missing from what `pip install` brings."""
    setuptools = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = ("flows", "prdit_models", "storage", "tasks")
    found = {
        path.parent.relative_to(repository).as_posix().replace("/", ".")
        for room in rooms
        for path in (repository / room).rglob("__init__.py")
    }
    assert sorted(setuptools["packages"]) == sorted(found)


def make(repository: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | variables
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=repository, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )


def test_make_lists_every_target_of_the_readme(repository: Path) -> None:
    listing = make(repository).stdout
    named = set(re.findall(r"(?m)(?:^    |`)make ([a-z-]+)\b", (repository / "README.md").read_text()))
    assert {"setup", "demo", "test", "up", "down"} <= named
    assert named <= set(re.findall(r"^  make ([a-z-]+)", listing, re.M))


def test_missing_venv_module_is_named_with_its_apt_command(repository: Path, tmp_path: Path) -> None:
    """A Debian Python without python3-venv: `import ensurepip` fails, everything else works."""
    fake = tmp_path / "python3.11"
    fake.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\necho "should not be reached: $*"; exit 99\n')
    fake.chmod(0o755)
    done = make(repository, "setup", f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stdout
    assert "should not be reached" not in done.stdout


def test_setup_installs_nothing_twice(repository: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
    python.chmod(0o755)
    for _ in range(2):
        assert make(repository, "setup", f"VENV={venv}", "TORCH_INDEX=https://torch.example/cpu").returncode == 0
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert "-c constraints.txt -e .[dev]" in call
    assert "--extra-index-url https://torch.example/cpu" in call


def test_notice_and_licence_are_there(repository: Path) -> None:
    assert "Apache License" in (repository / "LICENSE").read_text()
    for name in ("README.md", "THIRD_PARTY.md"):
        text = (repository / name).read_text().lower()
        assert "research use only" in text
        assert "not a medical device" in text


def test_ci_script_is_executable_and_calls_make_test(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make test")


@pytest.mark.parametrize("package", ["tests.bench", "tests.drills"])
def test_what_is_run_by_hand_can_be_imported(package: str) -> None:
    folder = import_module(package).__path__
    names = [name for _, name, _ in iter_modules(folder, f"{package}.") if not name.endswith("__main__")]
    assert len(names) > 10
    failed = {}
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            failed[name] = str(error)
    assert failed == {}
