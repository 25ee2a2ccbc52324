"""A small copy of the Imaging Data Commons on this machine: phantoms in a public bucket of a real S3 server, and an index of them.

Tests reach no network: the bucket is moto's, which asks for permissions and computes ETags as S3 does, behind a proxy
that counts requests and can refuse, change or hold them.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from storage.phantom.series import write_demo_data

BUCKET = "idc-open-data"
COLLECTION = "phantom_chest"
LICENCE, DOI = "CC BY-NC 4.0", "10.1234/phantoms"
# Faults: (path, status, body) -> (status, body) of an answer.
Fault = Callable[[str, int, bytes], tuple[int, bytes]]

_COLUMNS = {
    "collection_id": "VARCHAR",
    "analysis_result_id": "VARCHAR",
    "PatientID": "VARCHAR",
    "SeriesInstanceUID": "VARCHAR",
    "Modality": "VARCHAR",
    "Manufacturer": "VARCHAR",
    "instanceCount": "BIGINT",
    "license_short_name": "VARCHAR",
    "source_DOI": "VARCHAR",
    "aws_bucket": "VARCHAR",
    "crdc_series_uuid": "VARCHAR",
    "series_size_MB": "DOUBLE",
}


def write_index(path: Path, rows: list[dict[str, Any]], columns: dict[str, str] = _COLUMNS) -> Path:
    """An index as Parquet; what a row does not name is NULL."""
    duckdb = pytest.importorskip("duckdb", reason="the extra idc is not installed")
    with duckdb.connect() as database:
        database.execute(f"CREATE TABLE t ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        places = ", ".join("?" for _ in columns)
        database.executemany(f"INSERT INTO t VALUES ({places})", [[row.get(name) for name in columns] for row in rows])
        database.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    return path


def index_row(patient: str, uid: str, **changes: Any) -> dict[str, Any]:
    """One series of the collection; columns may be named."""
    return {
        "collection_id": COLLECTION,
        "PatientID": patient,
        "SeriesInstanceUID": uid,
        "Modality": "CT",
        "Manufacturer": "SIEMENS",
        "instanceCount": 100,
        "license_short_name": LICENCE,
        "source_DOI": DOI,
        "aws_bucket": BUCKET,
        "crdc_series_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, uid)),
        "series_size_MB": 50.0,
    } | changes


def no_fault(_: str, status: int, body: bytes) -> tuple[int, bytes]:
    """The answer as it is."""
    return status, body


@dataclass
class FakeIdc:
    """The archive.

    Attributes:
        endpoint: of the server.
        index: file.
        files: bytes of every image by its key in the bucket.
        client: that may write.
        asked: paths of the images that were asked for, in order.
        fault: changes answers.
    """

    endpoint: str = ""
    index: Path = Path()
    files: dict[str, bytes] = field(default_factory=dict)
    client: Any = None
    asked: list[str] = field(default_factory=list)
    fault: Fault = no_fault

    def put(self, key: str, data: bytes, acl: str = "public-read") -> None:
        """An object that anyone may read."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data, ACL=acl)
        self.files[key] = data


@contextmanager
def empty_archive() -> Iterator[FakeIdc]:
    """The archive with an empty bucket and no index."""
    pytest.importorskip("obstore", reason="the extra idc is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    archive = FakeIdc()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(archive, host, port))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        archive.endpoint = f"http://127.0.0.1:{proxy.server_port}"
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        archive.client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
        archive.client.create_bucket(Bucket=BUCKET)
        yield archive
        listed = archive.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        for item in listed:  # moto's servers of one process have one memory
            archive.client.delete_object(Bucket=BUCKET, Key=item["Key"])
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


@contextmanager
def fake_idc(folder: Path, num_patients: int = 2) -> Iterator[FakeIdc]:
    """The archive with whole phantom series, one per patient; its index is in `folder`."""
    with empty_archive() as archive:
        rows = []
        for series in write_demo_data(folder / "phantoms", num_patients=num_patients, small=True)[:num_patients]:
            images = [path.read_bytes() for path in sorted((folder / "phantoms" / series["folder"]).iterdir())]
            size = sum(len(image) for image in images) / 1e6
            changes = {"instanceCount": len(images), "series_size_MB": size}
            rows.append(index_row(series["patient_id"], series["series_uid"], **changes))
            for image in images:
                archive.put(f"{rows[-1]['crdc_series_uuid']}/{uuid.uuid4()}.dcm", image)
        archive.index = write_index(folder / "index.parquet", rows)
        yield archive


def _handler(archive: FakeIdc, host: str, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name http.server calls
            assert "Authorization" not in self.headers, "an anonymous reader signs nothing"
            upstream = HTTPConnection(host, port)
            upstream.request("GET", self.path)
            answer = upstream.getresponse()
            status, body = answer.status, answer.read()
            upstream.close()
            if "list-type" not in self.path:
                archive.asked.append(self.path)
            status, body = archive.fault(self.path, status, body)
            self.send_response(status)
            for name in ("ETag", "Last-Modified", "Content-Type"):
                if value := answer.getheader(name):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    return Handler
