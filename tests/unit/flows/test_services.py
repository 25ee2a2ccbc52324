"""Local services: who is started, who is ended, who is started again, and above all who is not touched.

Small stand-ins are in the places of the three programs; tests/integration/test_services_real.py runs the real ones.
"""

import configparser
import http.server
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import services as local
from flows.databases import DatabaseError
from flows.services import (
    CONFIGURATION,
    IntakeError,
    ServiceError,
    Services,
    child_environment,
    pids,
    running,
    start,
    stop,
)
from storage.errors import ConfigError
from tests.processes import PATIENCE_S, alive, wait_for

# Two processes, as `mlflow server` is. Answers as Prefect (health, the worker's status) and as MLflow (health) do.
FAKE_SERVER = """
import http.server, json, pathlib, subprocess, sys
if pathlib.Path(__file__).with_name("broken").exists():
    sys.exit("the database is from the future")
if "child" not in sys.argv:
    sys.exit(subprocess.run([sys.executable, *sys.argv, "child"]).returncode)
port = int(sys.argv[sys.argv.index("--port") + 1])
print("listening", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        text = json.dumps([{"name": f"local-{port}", "status": "ONLINE"}])
        self.send_response(200); self.end_headers(); self.wfile.write(text.encode())
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
SLEEP = "import time; time.sleep(3600)"
# A flow run in a session of its own, which a signal to the worker's group does not reach, and deaf to SIGTERM.
WITH_STUBBORN_RUN = """
import subprocess, sys, time
run = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(3600)"
subprocess.Popen([sys.executable, "-c", run], start_new_session=True)
time.sleep(3600)
"""


class StandIns:
    """State directory and configuration of services whose programs are small scripts.

    Everything else is the real configuration. The directory's path is longer than a socket's may be, and has the characters
    that mean something in an INI file, a shell, and supervisord's expansions.
    """

    def __init__(self, root: Path) -> None:
        self.state_dir = root / ("long" * 40) / "50% ; #1 'quoted' \"twice\""
        self.configuration = root / "supervisord.conf"
        self.scripts = {
            name: root / f"{name}.py" for name in ("server", "mlflow", "worker", "watcher", "listener", "health")
        }
        text = CONFIGURATION.read_text()
        for command, script in (
            ("flows.serve prefect", "server"),
            ("flows.serve mlflow", "mlflow"),
            ("flows.serve worker", "worker"),
            ("flows.serve watcher", "watcher"),
            ("flows.serve listener", "listener"),
            ("flows.health", "health"),
        ):
            text, count = re.subn(f"-m {command}", str(self.scripts[script]), text)
            assert count == 1
        self.configuration.write_text(text)
        for name, place in self.scripts.items():
            place.write_text(FAKE_SERVER if name in ("server", "mlflow") else SLEEP)

    @property
    def broken(self) -> Path:
        """While this file exists, servers end at once."""
        return self.scripts["server"].with_name("broken")

    def started(self) -> list[int]:
        """Everything that came of these services, found without the code under test."""
        marker = f"SUPERVISOR_SERVER_URL=unix://{local._socket(self.state_dir.resolve())}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
        return [pid for pid in found if alive(pid)]


def started_again(services: Services, name: str, before: int) -> bool:
    """Whether a service has another process than before; that all were down meanwhile may be over before anybody looks."""
    return pids(services)[name] not in (0, before)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIns]:
    value = StandIns(tmp_path)
    monkeypatch.setattr(local, "CONFIGURATION", value.configuration)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(local, "_SOCKETS", Path(short) / "sockets")
        yield value
        stop(value.state_dir)
        assert value.started() == []


def test_mlflow_addresses_open_on_runs_and_metrics(tmp_path: Path) -> None:
    services = Services(state_dir=tmp_path, prefect_ui_url="p", mlflow_url="http://h:1")
    kind = "?workflowType=machine_learning"
    assert local.mlflow_page(services) == f"http://h:1/#/experiments{kind}"
    assert local.mlflow_page(services, "3") == f"http://h:1/#/experiments/3/runs{kind}&viewStateShareKey=prdit"
    assert local.mlflow_page(services, "3", "abc") == f"http://h:1/#/experiments/3/runs/abc{kind}"


def test_start_twice_is_one_set_and_stop_leaves_nothing(stand_ins: StandIns) -> None:
    state_dir = stand_ins.state_dir
    assert running(state_dir) is None
    services = start(state_dir)
    first = pids(services)
    assert set(first) == {"supervisord", "prefect", "mlflow", "worker"}
    assert running(state_dir) == services
    assert start(state_dir) == services
    assert pids(services) == first
    members = stand_ins.started()
    assert len(members) == 5  # two for each server
    assert {first["prefect"], first["mlflow"], first["worker"]} <= set(members)
    assert stop(state_dir) == sorted(members)
    assert stand_ins.started() == []
    assert not alive(first["supervisord"])
    assert running(state_dir) is None
    assert stop(state_dir) == []


def test_what_is_killed_is_started_again_and_the_others_stay(stand_ins: StandIns) -> None:
    services = start(stand_ins.state_dir)
    for name in ("prefect", "mlflow", "worker"):
        before = pids(services)
        os.kill(before[name], signal.SIGKILL)  # of a server, this leaves a child that holds the port
        wait_for(lambda name=name, pid=before[name]: started_again(services, name, pid))
        wait_for(lambda: running(stand_ins.state_dir) == services)
        after = pids(services)
        assert {key for key in after if after[key] != before[key]} == {name}
        assert len(stand_ins.started()) == 5


def test_start_begins_again_what_was_given_up_and_leaves_the_rest(stand_ins: StandIns) -> None:
    services = start(stand_ins.state_dir)
    before = pids(services)
    stand_ins.broken.touch()
    os.kill(before["mlflow"], signal.SIGKILL)
    state = lambda: local._supervisor(services.state_dir, "getProcessInfo", "mlflow")["statename"]  # noqa: E731
    wait_for(lambda: state() == "FATAL")
    assert running(stand_ins.state_dir) is None
    stand_ins.broken.unlink()
    assert start(stand_ins.state_dir) == services
    after = pids(services)
    assert {key for key in after if after[key] != before[key]} == {"mlflow"}


def test_a_killed_supervisord_leaves_nothing_that_start_does_not_end(stand_ins: StandIns) -> None:
    services = start(stand_ins.state_dir)
    orphans = stand_ins.started()
    os.kill(pids(services)["supervisord"], signal.SIGKILL)
    wait_for(lambda: running(stand_ins.state_dir) is None)
    assert stand_ins.started() == orphans  # they are left: this test can fail
    again = start(stand_ins.state_dir)
    assert not set(orphans) & set(stand_ins.started())
    assert len(stand_ins.started()) == 5
    assert running(stand_ins.state_dir) == again


def test_a_killed_supervisord_leaves_nothing_that_stop_does_not_end(stand_ins: StandIns) -> None:
    services = start(stand_ins.state_dir)
    orphans = stand_ins.started()
    os.kill(pids(services)["supervisord"], signal.SIGKILL)
    assert stop(stand_ins.state_dir) == sorted(orphans)
    assert stand_ins.started() == []


def test_a_lost_state_directory_does_not_hide_what_runs(stand_ins: StandIns) -> None:
    start(stand_ins.state_dir)
    members = stand_ins.started()
    stand_ins.state_dir.rename(stand_ins.state_dir.with_name("moved"))
    assert stop(stand_ins.state_dir) == sorted(members)


def test_runs_of_a_killed_worker_are_ended(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.scripts["worker"].write_text(WITH_STUBBORN_RUN)
    monkeypatch.setattr(local, "_STOP_TIMEOUT_S", 1.0)
    services = start(stand_ins.state_dir)
    log = stand_ins.state_dir / "logs" / "worker.log"
    wait_for(lambda: "deaf" in log.read_text())
    worker = pids(services)["worker"]
    (run,) = [child.pid for child in psutil.Process(worker).children()]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: started_again(services, "worker", worker))
    assert alive(run)  # it outlives its worker
    assert run in stop(stand_ins.state_dir)
    assert not alive(run)


def test_a_site_has_its_intake_too(stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Added to servers that run already, as after a demo; the listener only where one is configured."""
    monkeypatch.chdir(tmp_path)
    before = pids(start(stand_ins.state_dir))
    services = start(stand_ins.state_dir, home=tmp_path)
    assert (tmp_path / ".prdit" / "inbox").is_dir()
    after = pids(services)
    assert set(after) == {*before, "watcher", "health"}
    assert {name: after[name] for name in before} == before
    (tmp_path / ".prdit" / "site.yaml").write_text("listener: {allowed: [SCANNER]}\ninbox: {folder: new}\n")
    services = start(stand_ins.state_dir, home=tmp_path)
    assert (tmp_path / "new").is_dir()
    assert set(pids(services)) == {*after, "listener"}
    assert start(stand_ins.state_dir) == services  # a demo beside it leaves it alone
    assert {name: pid for name, pid in pids(services).items() if name != "listener"} == after
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    with pytest.raises(ConfigError, match=f"run for the folder {tmp_path}"):
        start(stand_ins.state_dir, home=other)
    assert list(other.iterdir()) == []


def test_an_intake_that_ends_leaves_the_servers_up(
    stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_ins.scripts["watcher"].write_text("import sys; sys.exit('the inbox lies in the store')")
    before = pids(start(stand_ins.state_dir))
    with pytest.raises(
        IntakeError, match=r"(?s)watcher ended while starting.*watcher\.log.*the inbox lies in the store"
    ):
        start(stand_ins.state_dir, home=tmp_path)
    services = running(stand_ins.state_dir)
    assert services is not None
    assert {name: pid for name, pid in pids(services).items() if name in before} == before
    stand_ins.scripts["watcher"].write_text(SLEEP)
    start(stand_ins.state_dir, home=tmp_path)
    assert pids(services)["watcher"] > 0


def test_an_old_database_keeps_everything_from_starting(stand_ins: StandIns) -> None:
    folder = stand_ins.state_dir / "mlflow"
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('f5a4f2784254')")
        connection.execute("CREATE TABLE runs (run_uuid TEXT)")
        connection.execute("INSERT INTO runs VALUES ('1')")
    connection.close()
    content = (folder / "mlflow.db").read_bytes()
    with pytest.raises(DatabaseError, match="prdit migrate"):
        start(stand_ins.state_dir)
    assert stand_ins.started() == []
    assert (folder / "mlflow.db").read_bytes() == content


def test_other_processes_are_not_touched(stand_ins: StandIns) -> None:
    """Neither those of another supervisord, nor clients of the services."""
    services = start(stand_ins.state_dir)
    other = os.environ | {"SUPERVISOR_SERVER_URL": "unix:///tmp/other.sock", "SUPERVISOR_PROCESS_NAME": "worker"}
    strangers = [
        subprocess.Popen([sys.executable, "-c", SLEEP], env=env) for env in (other, child_environment(services))
    ]
    try:
        stop(stand_ins.state_dir)
        time.sleep(0.5)
        assert [stranger.poll() for stranger in strangers] == [None, None]
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def test_a_service_that_ends_says_why_and_nothing_stays(stand_ins: StandIns) -> None:
    stand_ins.broken.touch()
    with pytest.raises(
        ServiceError, match=r"(?s)prefect ended while starting.*prefect\.log.*database is from the future"
    ):
        start(stand_ins.state_dir)
    assert stand_ins.started() == []


def test_a_service_that_hangs_is_given_up(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_START_TIMEOUT_S", 1.0)
    stand_ins.scripts["server"].write_text(SLEEP)
    with pytest.raises(ServiceError, match="prefect did not answer within 1 s"):
        start(stand_ins.state_dir)
    assert stand_ins.started() == []


def test_a_configuration_supervisord_refuses_is_shown(stand_ins: StandIns) -> None:
    text = stand_ins.configuration.read_text()
    stand_ins.configuration.write_text(text.replace("startsecs = 60", "startsecs = soon"))
    with pytest.raises(ServiceError, match=r"(?s)supervisord ended with exit code 2.*soon"):
        start(stand_ins.state_dir)


class _Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (FAKE_SERVER, "(?s)mlflow ended while starting.*Address already in use"),
        (SLEEP, "mlflow did not answer within 10 s"),
    ],
)
def test_a_port_that_somebody_else_answers_on_is_not_ours(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    """Taken between choice and bind: the stranger's health page does not pass for our server's."""
    stand_ins.scripts["mlflow"].write_text(script)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        free, _ = local._free_ports()
        with monkeypatch.context() as patch:
            patch.setattr(local, "_free_ports", lambda: (free, str(stranger.server_port)))
            patch.setattr(local, "_START_TIMEOUT_S", 10.0 if script == SLEEP else 90.0)
            with pytest.raises(ServiceError, match=message):
                start(stand_ins.state_dir)
        assert stand_ins.started() == []
        stranger.shutdown()


def taken(port: int) -> socket.socket:
    """A listener of somebody else's; the connections of who listened there before may take a moment to go."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_port_lost_at_a_restart_is_replaced_by_the_next_start(stand_ins: StandIns) -> None:
    services = start(stand_ins.state_dir)
    port = int(services.mlflow_url.rsplit(":", 1)[1])
    local._supervisor(services.state_dir, "stopProcess", "mlflow")
    with taken(port):
        again = start(stand_ins.state_dir)
        assert again.mlflow_url != services.mlflow_url
        assert running(stand_ins.state_dir) == again


def test_ctrl_c_while_starting_leaves_nothing(stand_ins: StandIns) -> None:
    stand_ins.scripts["mlflow"].write_text(SLEEP)
    worker_log = stand_ins.state_dir / "logs" / "worker.log"  # the last program is started, and mlflow never answers

    def interrupt() -> None:
        wait_for(worker_log.exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        start(stand_ins.state_dir)
    thread.join()
    assert stand_ins.started() == []
    assert not local._socket(stand_ins.state_dir.resolve()).exists()


def test_only_the_user_controls_the_services(stand_ins: StandIns) -> None:
    before = os.umask(0o077)
    try:
        start(stand_ins.state_dir)
    finally:
        os.umask(before)
    address = local._socket(stand_ins.state_dir.resolve())
    for path in (address, address.parent):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o700, os.getuid())
    assert stat.S_IMODE((stand_ins.state_dir / "logs" / "prefect.log").stat().st_mode) == 0o600  # the user's umask


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_for_sockets_that_others_could_use_is_refused(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "sockets"
    if kind == "open":
        folder.mkdir(mode=0o755)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.touch(mode=0o600)
    with monkeypatch.context() as patch:
        patch.setattr(local, "_SOCKETS", folder)
        assert running(stand_ins.state_dir) is None
        for call in (start, stop):
            with pytest.raises(ServiceError, match=rf"{folder} .* nobody else can open"):
                call(stand_ins.state_dir)


def test_services_see_no_other_servers_settings(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_KEY", "PREFECT_PROFILE", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "of-another-server")
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    services = start(stand_ins.state_dir)
    for name in ("prefect", "mlflow", "worker"):
        variables = psutil.Process(pids(services)[name]).environ()
        assert "of-another-server" not in variables.values()
        assert variables["PREFECT_API_URL"] == services.prefect_api_url
        assert variables["MLFLOW_TRACKING_URI"] == services.mlflow_url
        assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
        assert variables["no_proxy"] == variables["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"
    # A user's shell that takes these over must never be ended by `stop`.
    assert "SUPERVISOR_SERVER_URL" not in child_environment(services)


def test_every_service_has_a_log_that_is_rotated(stand_ins: StandIns) -> None:
    text = stand_ins.configuration.read_text().replace("_maxbytes = 10MB", "_maxbytes = 1KB")
    stand_ins.configuration.write_text(text)
    stand_ins.scripts["worker"].write_text("print(*range(500), flush=True)\n" + SLEEP)
    start(stand_ins.state_dir)
    logs = stand_ins.state_dir / "logs"
    wait_for(lambda: (logs / "worker.log.1").is_file())
    assert (logs / "worker.log").stat().st_size < 4096
    for name in ("prefect", "mlflow"):
        assert (logs / f"{name}.log").read_text().splitlines()[0] == "listening"
    programs = configparser.RawConfigParser()
    programs.read_string(CONFIGURATION.read_text())
    for section in (name for name in programs.sections() if name.startswith("program:")):
        assert programs[section]["stdout_logfile_maxbytes"] == "10MB"
        assert programs[section]["autorestart"] == programs[section]["stopasgroup"] == "true"


def test_modules_that_runs_would_import_instead_of_ours_are_named(tmp_path: Path) -> None:
    services = Services(state_dir=tmp_path, prefect_ui_url="http://127.0.0.1:1", mlflow_url="http://127.0.0.1:2")
    (tmp_path / "flows.py").touch()
    (tmp_path / "storage").mkdir()  # a folder that is no package does not hide ours
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    with pytest.raises(ServiceError, match=rf"{tmp_path} has Python modules named flows, tasks\."):
        local.deploy(services, tmp_path)
