"""compose.yaml and the systemd units of deploy/: valid, and of one piece with the program that they start."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from flows.serve import PORTS, SERVICES

# Keys of a service that the Compose Specification knows, as far as they are used here.
_SERVICE_KEYS = {
    "image", "build", "restart", "init", "logging", "environment", "volumes", "healthcheck", "command", "ports", "depends_on",
    "stop_grace_period",
}  # fmt: skip


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((repository / "deploy" / "compose.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def units(repository: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((repository / "deploy" / "systemd").iterdir())}


def test_compose_has_only_keys_that_compose_knows(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} == {"name", "services", "volumes"}
    assert set(compose["services"]) == {"database", "prefect", "mlflow", "worker", "deployments", "watcher"}
    named = set()
    for name, service in compose["services"].items():
        assert set(service) <= _SERVICE_KEYS, name
        for other, how in service.get("depends_on", {}).items():
            assert how["condition"] in ("service_healthy", "service_started")
            assert other in compose["services"]
            assert how["condition"] == "service_started" or "healthcheck" in compose["services"][other]
        named |= {volume.split(":")[0] for volume in service.get("volumes", ()) if volume[0] not in "$."}
    assert named == set(compose["volumes"])


def test_compose_starts_our_services_for_this_machine_only(compose: dict[str, Any]) -> None:
    runner = CliRunner()
    for name in ("prefect", "mlflow", "worker", "watcher"):
        service = compose["services"][name]
        assert service["command"][:2] == ["serve", name]
        assert service["restart"] == "always"
        if name in PORTS:
            port = PORTS[name]
            assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
            assert f"127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]
    assert compose["services"]["deployments"]["command"] == ["deploy"]
    for command in ("serve", "deploy"):
        assert runner.invoke(app, [command, "--help"]).exit_code == 0


def test_compose_has_no_password_and_each_service_only_what_it_needs(compose: dict[str, Any], repository: Path) -> None:
    services = compose["services"]
    variables = {name: set(service.get("environment", ())) for name, service in services.items()}
    assert all("PRDIT_AUTH" in variables[name] for name in set(services) - {"database"})
    assert {name for name in services if "PRDIT_DATABASE" in variables[name]} == {"prefect", "mlflow", "worker"}
    text = (repository / "deploy" / "compose.yaml").read_text()
    for name in ("PRDIT_AUTH", "POSTGRES_PASSWORD"):
        assert re.search(rf"\$\{{{name}:\?", text)  # without it, nothing starts
        assert re.search(rf"(?m)^{name}=", (repository / "deploy" / "example.env").read_text())
    assert services["prefect"]["environment"]["PRDIT_DATABASE"] == (
        "postgresql://prdit:${POSTGRES_PASSWORD:?password of the database}@database:5432"
    )


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_docker_reads_compose(repository: Path) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose")
    variables = os.environ | {"PRDIT_AUTH": "me:pass-word", "POSTGRES_PASSWORD": "secret"}
    command = ["docker", "compose", "-f", str(repository / "deploy" / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_units_start_what_there_is(units: dict[str, Path]) -> None:
    commands = set()
    for name, path in units.items():
        parser = configparser.RawConfigParser(strict=False, delimiters=["="])
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(path.read_text())
        if name.endswith(".timer"):
            continue
        unit = parser["Service"]
        assert unit["WorkingDirectory"] == "%h/site"
        assert unit["EnvironmentFile"] == "-%h/.config/prdit/environment"
        assert unit["UMask"] == "0077"
        commands.add(unit["ExecStart"])
        if name != "prdit-backup.service":
            assert unit["Restart"] == "always"
    served = {match[1] for command in commands if (match := re.search(r"prdit serve (\w+)$", command))}
    assert served == {"prefect", "mlflow", "worker", "watcher"} < set(SERVICES)
    assert "-/usr/bin/env prdit up" in commands


def verify(paths: list[Path], home: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    command = ["systemd-analyze", "verify", "--user", *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_has_nothing_to_say_about_the_units(units: dict[str, Path], tmp_path: Path) -> None:
    assert verify(list(units.values()), tmp_path) == ""
    wrong = tmp_path / "prdit-wrong.service"
    wrong.write_text(units["prdit.service"].read_text().replace("Restart=always", "Restart=sometimes"))
    assert "sometimes" in verify([wrong], tmp_path)
