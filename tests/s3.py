"""A real S3 server on 127.0.0.1, and what the environment needs to find it; faults are put before it by `Faults`."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import boto3
import pytest

from storage import bucket_path
from tests.ports import free_ports
from tests.processes import wait_for

BUCKET = "scans"
_HOP = {"connection", "transfer-encoding", "keep-alive"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of a server in a process of its own, with one bucket; the environment names it while the block lasts."""
    port = free_ports()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(port), 300)
        with pytest.MonkeyPatch.context() as patch:
            use(patch, address)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield address
    finally:
        server.terminate()
        server.wait()
        forget_clients()


def use(patch: pytest.MonkeyPatch, address: str) -> None:
    """Have this process and its children work with the server at an address."""
    patch.setenv("AWS_ENDPOINT_URL_S3", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    forget_clients()


def forget_clients() -> None:
    """Make clients anew, of the environment as it is."""
    bucket_path._client.cache_clear()
    bucket_path._conditional_buckets.cache_clear()


def _answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/moto-api/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Faults:
    """A proxy before an S3 server that breaks requests as it is told.

    Attributes:
        address: of the proxy.
        rule: (method, path, number of the request) -> "" to pass it on; "503"; "403"; "cut": the request reaches the server and the
            answer is cut off; "cut-before": the connection ends before the server sees it; "unconditional": conditions are removed.
        seen: (method, path) of every request.
    """

    def __init__(self, server: str) -> None:
        self.rule: Callable[[str, str, int], str] = lambda method, path, number: ""
        self.seen: list[tuple[str, str]] = []
        numbers = itertools.count()
        faults, target = self, urlsplit(server)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                faults.seen.append((self.command, self.path))
                what = faults.rule(self.command, self.path, next(numbers))
                if what in ("503", "403"):
                    code = {"503": "SlowDown", "403": "AccessDenied"}[what]
                    self._answer(int(what), [], f"<Error><Code>{code}</Code></Error>".encode())
                    return
                if what == "cut-before":
                    self.close_connection = True
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
                if what == "unconditional":
                    headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
                connection = HTTPConnection(str(target.hostname), target.port)
                connection.request(self.command, self.path, body, headers)
                found = connection.getresponse()
                data = found.read()
                if what == "cut":
                    self.close_connection = True
                    return
                self._answer(found.status, found.getheaders(), data)

            def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
                self.send_response(status)
                length = str(len(data))
                for key, value in headers:
                    if key.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    elif key.lower() not in {*_HOP, "content-length", "date", "server"}:
                        self.send_header(key, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - names of http.server

        class Server(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                """Clients are killed in the middle of requests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the proxy."""
        self._server.shutdown()
        self._server.server_close()
