"""`prdit doctor`: checks whether this installation can run, and says what to do where it cannot."""

import os
import shutil
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict

from flows import services as local
from tasks.run.machine import cores, memory_available

Status = Literal["ok", "warn", "fail"]

# What fails outside the bounds, where the failure itself does not show why (docs/decisions/0001-dependency-bounds.md).
_KNOWN_FAILURES = {
    "fastapi": "with another FastAPI, Prefect 3.8 runs no flow (TypeError: min_items)",
    "sqlalchemy": "with another SQLAlchemy, Prefect 3.8's scheduler creates no runs and says nothing",
    "pydicom": "older pydicom has a known vulnerability",
    "zarr": "newer zarr needs Python 3.12",
}
_GPL_DECODER = "pylibjpeg-libjpeg"
_WARN_FREE_GB = 20.0
_FAIL_FREE_GB = 2.0
_WARN_MEMORY_GB = 4.0  # ingest takes 1.5 GB per process, Python and torch the rest


class Check(BaseModel):
    """One finding.

    Attributes:
        name: what was looked at.
        status: `ok`, `warn` (works, with a loss), `fail` (will not work).
        detail: what was found.
        remedy: what to do; empty when ok.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    status: Status
    detail: str
    remedy: str = ""


def doctor(*, directory: Path | None = None, services_dir: Path = local.DEFAULT_STATE_DIR) -> list[Check]:
    """Run every check; none raises.

    Args:
        directory: where stores and stages will be written (its disk is measured); default: the current directory.
        services_dir: state of the local services, asked when the environment names no server.
    """
    services = local.started(services_dir)  # what is wrong with them has checks of its own
    prefect_url = os.environ.get("PREFECT_API_URL") or (services.prefect_api_url if services else None)
    mlflow_url = os.environ.get("MLFLOW_TRACKING_URI") or (services.mlflow_url if services else None)
    checks: list[Callable[[], list[Check]]] = [
        check_versions,
        check_machine,
        check_torch,
        check_features,
        check_decoders,
        lambda: [check_disk(directory or Path.cwd())],
        lambda: [check_server("Prefect server", prefect_url, "/health", "PREFECT_API_URL")],
        lambda: [check_server("MLflow server", mlflow_url, "/health", "MLFLOW_TRACKING_URI")],
        lambda: _check_services(services_dir),
    ]
    return [finding for check in checks for finding in check()]


def _check_services(services_dir: Path) -> list[Check]:
    from flows.doctor_services import check_services

    return check_services(services_dir)


def check_versions(requirements: list[str] | None = None) -> list[Check]:
    """Installed versions against the bounds prdit declares (`pip check` misses some)."""
    findings = []
    for text in metadata.requires("prdit") or [] if requirements is None else requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        findings.append(_check_version(requirement))
    bad = [finding for finding in findings if finding.status != "ok"]
    good = len(findings) - len(bad)
    return [Check(name="versions", status="ok", detail=f"{good} of {len(findings)} core packages within bounds"), *bad]


def _check_version(requirement: Requirement) -> Check:
    name = requirement.name
    remedy = f"pip install '{name}{requirement.specifier}' (or make setup)"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name=name, status="fail", detail="not installed", remedy=remedy)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name=name, status="ok", detail=version)
    failure = _KNOWN_FAILURES.get(name.lower())
    detail = f"{version} is outside {requirement.specifier}" + (f": {failure}" if failure else "")
    return Check(name=name, status="fail", detail=detail, remedy=remedy)


def check_machine() -> list[Check]:
    """Cores and memory that this job may use, and what sets them: the machine, the affinity, or a cgroup."""
    processors, memory = cores(), memory_available()
    counted = f"{processors.amount} of {processors.total} (limit: {processors.limit})"
    free = f"{memory.amount / 1e9:.1f} of {memory.total / 1e9:.1f} GB free (limit: {memory.limit})"
    findings = [Check(name="cores", status="ok", detail=counted)]
    if memory.amount >= _WARN_MEMORY_GB * 1e9:
        return [*findings, Check(name="memory", status="ok", detail=free)]
    remedy = f"ask for {_WARN_MEMORY_GB:.0f} GB or more, or end other processes"
    return [*findings, Check(name="memory", status="warn", detail=free, remedy=remedy)]


def check_torch() -> list[Check]:
    """Version, GPU, and xformers where it would be used."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [Check(name="torch", status="fail", detail=f"cannot be imported: {error}", remedy="make setup")]
    findings = [Check(name="torch", status="ok", detail=torch.__version__)]
    if not torch.cuda.is_available():
        remedy = "small configurations only; see TORCH_INDEX in README for a CUDA build"
        return [
            *findings,
            Check(name="gpu", status="warn", detail="no CUDA device: training runs on CPU", remedy=remedy),
        ]
    findings.append(Check(name="gpu", status="ok", detail=torch.cuda.get_device_name(0)))
    try:
        detail, status, remedy = metadata.version("xformers"), "ok", ""
    except metadata.PackageNotFoundError:
        detail, status, remedy = "not installed: attention falls back to SDPA", "warn", "pip install -e '.[gpu]'"
    return [*findings, Check(name="xformers", status="ok" if status == "ok" else "warn", detail=detail, remedy=remedy)]


def check_features() -> list[Check]:
    """Which features `evaluate.extractor: auto` measures distances in."""
    from prdit_models.metrics.extractors.astra import INSTALL, PARTS, missing_parts

    missing = missing_parts()
    if not missing:
        detail = "distances are measured in features of a network trained on chest CT (evaluate.extractor: astra)"
        return [Check(name="features", status="ok", detail=detail)]
    which = "are not installed" if len(missing) == len(PARTS) else f"lack {', '.join(missing)}"
    detail = (
        f"the weights of a network trained on chest CT {which}: distances are measured in random features, which compare runs with "
        "each other only"
    )
    return [Check(name="features", status="warn", detail=detail, remedy=INSTALL)]


def check_decoders() -> list[Check]:
    """No GPL decoder is installed beside prdit unless intended."""
    try:
        version = metadata.version(_GPL_DECODER)
    except metadata.PackageNotFoundError:
        return [Check(name="licences", status="ok", detail=f"{_GPL_DECODER} (GPL-3.0) is not installed")]
    detail = f"{_GPL_DECODER} {version} is GPL-3.0: what you distribute together with it must be too"
    return [
        Check(name="licences", status="warn", detail=detail, remedy=f"pip uninstall {_GPL_DECODER}, unless intended")
    ]


def check_disk(directory: Path) -> Check:
    """Free space where results go: about 60 MB per volume at 1 mm, and checkpoints."""
    there = next(path for path in [directory.resolve(), *directory.resolve().parents] if path.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    detail = f"{free_gb:.1f} GB free at {there}"
    if free_gb >= _WARN_FREE_GB:
        return Check(name="disk", status="ok", detail=detail)
    status: Status = "fail" if free_gb < _FAIL_FREE_GB else "warn"
    return Check(
        name="disk", status=status, detail=detail, remedy=f"free some space: {_WARN_FREE_GB:.0f} GB are recommended"
    )


def check_server(name: str, url: str | None, path: str, variable: str) -> Check:
    """Whether a server answers its health page."""
    if not url:
        return Check(name=name, status="warn", detail="none configured", remedy=f"prdit up, or set {variable}")
    if not url.startswith(("http://", "https://")):
        return Check(name=name, status="ok", detail=f"{url} (no server)")
    try:
        with urllib.request.urlopen(url.rstrip("/") + path, timeout=5) as answer:
            return Check(name=name, status="ok", detail=f"{url} answers ({answer.status})")
    except (OSError, ValueError, HTTPException) as error:
        remedy = f"prdit up, or correct {variable}"
        return Check(name=name, status="fail", detail=f"{url} does not answer: {error}", remedy=remedy)
