"""Local services: who is started, who is ended, and above all who is not.

Most tests put small stand-ins in the places of the three programs; the last one runs the real ones.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import services as local
from flows.services import RECORD, TOKEN_VARIABLE, ServiceError, Services, child_environment, environment, start, stop

# Answers as Prefect (health, the worker's status) and as MLflow (health) do.
FAKE_SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        name = "local-" + __import__("os").environ["PRDIT_SERVICES_TOKEN"][:8]
        text = {"/api/health": "true", "/health": "OK"}.get(self.path, json.dumps([{"name": name, "status": "ONLINE"}]))
        self.send_response(200); self.end_headers(); self.wfile.write(text.encode())
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def carriers(token: str) -> list[int]:
    """Processes started by one start, found without the record."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{TOKEN_VARIABLE}={token}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if alive(pid)]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    state_dir = tmp_path / "services"
    monkeypatch.setattr(local, "_prefect_command", lambda port: [sys.executable, "-c", FAKE_SERVER, str(port)])
    monkeypatch.setattr(local, "_mlflow_command", lambda state, port: [sys.executable, "-c", FAKE_SERVER, str(port)])
    monkeypatch.setattr(local, "_python_module", lambda name: [sys.executable, "-c", "import time; time.sleep(120)"])
    yield state_dir
    if (state_dir / RECORD).exists():
        stop(state_dir)


def test_mlflow_addresses_open_on_runs_and_metrics(tmp_path: Path) -> None:
    services = local.Services(
        state_dir=tmp_path, prefect_ui_url="p", mlflow_url="http://h:1", token="", ready=True, processes=[]
    )
    kind = "?workflowType=machine_learning"
    assert local.mlflow_page(services) == f"http://h:1/#/experiments{kind}"
    assert local.mlflow_page(services, "3") == f"http://h:1/#/experiments/3/runs{kind}&viewStateShareKey=prdit"
    assert local.mlflow_page(services, "3", "abc") == f"http://h:1/#/experiments/3/runs/abc{kind}"


def test_start_twice_is_one_set_and_stop_leaves_nothing(stand_ins: Path) -> None:
    services = start(stand_ins)
    assert Services.model_validate_json((stand_ins / RECORD).read_text()) == services
    assert [item.name for item in services.processes] == ["prefect", "mlflow", "worker"]
    assert start(stand_ins) == services
    assert sorted(carriers(services.token)) == sorted(item.pid for item in services.processes)
    assert stop(stand_ins) == sorted(item.pid for item in services.processes)
    assert carriers(services.token) == []
    assert not (stand_ins / RECORD).exists()
    assert stop(stand_ins) == []


def test_one_dead_service_makes_start_replace_all(stand_ins: Path) -> None:
    first = start(stand_ins)
    os.kill(first.processes[1].pid, signal.SIGKILL)
    assert local.running(stand_ins) is None
    second = start(stand_ins)
    assert second.token != first.token
    assert carriers(first.token) == []
    assert len(carriers(second.token)) == 3


def test_orphans_of_a_killed_worker_are_ended(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow run outlives its worker's kill -9 under PID 1, in a session of its own: the token still names it."""
    spawn = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"
    )
    monkeypatch.setattr(local, "_python_module", lambda name: [sys.executable, "-c", spawn + "; time.sleep(120)"])
    monkeypatch.setattr(local, "_STOP_TIMEOUT_S", 1.0)
    services = start(stand_ins)
    time.sleep(1)
    worker = services.processes[2].pid
    (orphan,) = [child.pid for child in psutil.Process(worker).children()]
    os.kill(worker, signal.SIGKILL)
    stopped = stop(stand_ins)
    assert orphan in stopped  # it ignores SIGTERM, too
    assert not alive(orphan)


def test_a_foreign_process_with_a_recorded_id_is_not_touched(stand_ins: Path) -> None:
    services = start(stand_ins)
    stop(stand_ins)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        born = psutil.Process(stranger.pid).create_time()
        stale = services.model_dump(mode="json")
        stale["processes"] = [{"name": "worker", "pid": stranger.pid, "create_time": born - 30, "log": "x"}]
        (stand_ins / RECORD).write_text(json.dumps(stale))
        assert local.running(stand_ins) is None
        assert stop(stand_ins) == []
        assert stranger.poll() is None
        assert not (stand_ins / RECORD).exists()
        stale["processes"][0]["create_time"] = (
            born  # and with its own time of birth it would be ours: the test can fail
        )
        (stand_ins / RECORD).write_text(json.dumps(stale))
        assert stop(stand_ins) == [stranger.pid]
    finally:
        stranger.kill()
        stranger.wait()


def test_a_service_that_ends_says_why_and_nothing_stays(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the database is from the future')"]
    monkeypatch.setattr(local, "_mlflow_command", lambda state, port: command)
    with pytest.raises(
        ServiceError, match=r"(?s)mlflow ended while starting.*mlflow\.log.*database is from the future"
    ):
        start(stand_ins)
    assert not (stand_ins / RECORD).exists()


def test_a_service_that_hangs_is_given_up(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_START_TIMEOUT_S", 1.0)
    monkeypatch.setattr(local, "_prefect_command", lambda port: [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(ServiceError, match="prefect did not answer within 1 s"):
        start(stand_ins)
    assert not (stand_ins / RECORD).exists()


def test_a_port_lost_between_choice_and_bind_is_replaced(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_ports = local._free_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lost = int(taken.getsockname()[1])
        rounds = iter([[lost, free_ports(1)[0]], free_ports(2)])
        monkeypatch.setattr(local, "_free_ports", lambda count: next(rounds))
        said: list[str] = []
        services = start(stand_ins, log=said.append)
    assert str(lost) not in services.prefect_ui_url
    assert any("trying other ports (1 of 3)" in line for line in said)


def test_unreadable_record_is_an_error_with_a_remedy(stand_ins: Path) -> None:
    stand_ins.mkdir()
    (stand_ins / RECORD).write_text("{}")
    with pytest.raises(ServiceError, match=r"services\.json is not a record .* delete that file"):
        stop(stand_ins)
    (stand_ins / RECORD).unlink()


def test_environment_has_no_other_servers_settings(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_KEY", "PREFECT_PROFILE", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "of-another-server")
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    services = start(stand_ins)
    variables = child_environment(services)
    assert "of-another-server" not in variables.values()
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert TOKEN_VARIABLE not in environment(
        services
    )  # a user's shell that takes these over must never be ended by `stop`
    assert {"127.0.0.1", "localhost"} <= set(variables["NO_PROXY"].split(","))


@pytest.mark.slow
def test_the_real_services(tmp_path: Path) -> None:
    """Prefect, MLflow and a worker: up, on 127.0.0.1 only, deployable, and gone afterwards."""
    state_dir = tmp_path / "services"
    services = start(state_dir)
    try:
        members = set(carriers(services.token))
        assert {item.pid for item in services.processes} <= members
        listening = {
            (c.laddr.ip, c.laddr.port)
            for pid in members
            for c in psutil.Process(pid).net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }
        ports = {int(url.rsplit(":", 1)[1]) for url in (services.prefect_ui_url, services.mlflow_url)}
        assert {ip for ip, _ in listening} == {"127.0.0.1"}
        assert ports <= {port for _, port in listening}
        project = tmp_path / "project"
        project.mkdir()
        (project / "probe.py").write_text("from prefect import flow\n@flow(name='probe')\ndef probe(): pass\n")
        (project / "prefect.yaml").write_text(
            "name: probe\ndeployments:\n- {name: one, entrypoint: 'probe.py:probe', work_pool: {name: prdit}}\n"
            "pull:\n- prefect.deployments.steps.set_working_directory: {directory: '{{ $PRDIT_HOME }}'}\n"
        )
        local.deploy(services, project)
        deployment = local.call_api(services, "GET", "/deployments/name/probe/one")
        step = deployment["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]
        assert step["directory"] == str(project)
        (project / "prefect.yaml").write_text("deployments:\n- {name: one, entrypoint: 'no.py:no'}\n")
        with pytest.raises(ServiceError, match="exit code 1"):
            local.deploy(services, project)
    finally:
        stop(state_dir)
    assert carriers(services.token) == []
