"""Identifiers planted everywhere in a source: after an ingest none is found outside the private record beside the store."""

import gzip
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from tests.unit.storage.dicom_files import write_series
from tests.unit.storage.sources.nifti_files import centred, world_linear, write_image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MARK = "zqplant"  # part of every planted text, in whatever case
NUMBERS = ("7731946205", "19470311", "8855223311")  # PatientID, birth date, accession number
_SMALL = {"min_slices": 4, "min_length_mm": 0, "min_width_mm": 0, "spacing_mm": 4.0, "num_levels": 2}


def plant(data: Dataset) -> None:
    """Names, ids and comments where they belong, and where they do not: private tags, coded values, UIDs."""
    data.PatientName, data.PatientID, data.PatientBirthDate = "Zqplantname^Jane", NUMBERS[0], NUMBERS[1]
    data.OtherPatientIDs, data.AccessionNumber = "ZqplantOther", NUMBERS[2]
    data.InstitutionName, data.ReferringPhysicianName = "Zqplant Hospital", "Zqplantdoc^A"
    data.PatientComments, data.StudyDescription, data.SeriesDescription = (
        "zqplant comment",
        "zqplant study",
        "zqplant series",
    )
    data.ImageComments, data.StationName, data.ProtocolName = "zqplant image", "ZQPLANTSTATION", "zqplant protocol"
    data.private_block(0x0009, "ZQPLANT PRIVATE", create=True).add_new(1, "LO", "zqplant private")
    data.Manufacturer, data.ManufacturerModelName = "ACME Zqplantmaker", "Zqplantname 16"
    data.ConvolutionKernel, data.ScanOptions, data.BodyPartExamined = "Zqplantname", "ZQPLANTOPT", "ZQPLANTBODY"
    data.ContrastBolusAgent, data.PatientPosition = "zqplant agent", "ZQPLANT"
    data.add(DataElement("StudyInstanceUID", "LO", "1.2.zqplantstudy"))


def with_text(name: str, text: str):
    def change(k: int, data: Dataset) -> None:
        plant(data)
        data.add(DataElement(name, "LO", text))

    return change


# Tags that a reader looks at, each with a planted text in every image; then tags that differ between images.
READ_TAGS = (
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "AcquisitionNumber", "NumberOfFrames", "FrameOfReferenceUID", "ImageType", "PhotometricInterpretation", "SliceThickness",
    "ImagesInAcquisition", "Modality", "SOPClassUID", "SOPInstanceUID", "InstanceNumber", "StationName", "KVP",
)  # fmt: skip
SPLIT_TAGS = (
    "ConvolutionKernel",
    "FrameOfReferenceUID",
    "StudyInstanceUID",
    "AcquisitionNumber",
    "PatientID",
    "RescaleType",
    "StackID",
)


def alternating(name: str):
    def change(k: int, data: Dataset) -> None:
        plant(data)
        data.add(DataElement(name, "LO", f"zqplant{k % 2}"))

    return change


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source below `private`, and a link of a neutral name to it; beside it one without any CT."""
    world = tmp_path_factory.mktemp("world")
    source = world / "private" / "Zqplantroot Jane" / "Zqplant, source"
    size = {"shape": (8, 12, 14)}
    write_series(source / "Zqplant_Good", change=lambda k, data: plant(data), uid="1.2.3.1", **size)
    write_series(source / "Zqplant_Uid", change=with_text("SeriesInstanceUID", "Zqplantseries"), shape=(9, 12, 14))
    for number, name in enumerate(READ_TAGS):
        write_series(
            source / f"Zqplant_{name}", change=with_text(name, f"Zqplant{name}"), uid=f"1.2.4.{number}", **size
        )
    for number, name in enumerate(SPLIT_TAGS):
        write_series(source / f"Zqplant_2{name}", change=alternating(name), uid=f"1.2.5.{number}", **size)
    write_series(source / "Zqplant_Gap", change=lambda k, data: plant(data), uid="1.2.3.4", skip=(4,), **size)
    write_series(source / "Zqplant_Pixels", change=lambda k, data: plant(data), uid="1.2.3.7", **size)
    for path in (source / "Zqplant_Pixels").iterdir():
        data = pydicom.dcmread(path)
        data.PixelData = data.PixelData[:100]
        data.save_as(path)
    good = (source / "Zqplant_Good" / "000.dcm").read_bytes()
    (source / "Zqplant cut.dcm").write_bytes(good[:400])
    (source / "zqplant.txt").write_text("zqplant text")
    affine = centred(np.diag([2.0, 2.0, 2.5]), (14, 12, 9))
    write_image(source / "zqplant_scan.nii.gz", np.rint(world_linear(affine, (14, 12, 9))).astype(np.int16), affine)
    (source / "zqplant_broken.nii.gz").write_bytes((source / "zqplant_scan.nii.gz").read_bytes()[:3000])
    with zipfile.ZipFile(source / "zqplant.zip", "w") as archive:
        write_series(world / "private" / "member", change=lambda k, data: plant(data), uid="1.2.3.8", skip=(4,), **size)
        for path in sorted((world / "private" / "member").iterdir()):
            archive.write(path, f"Zqplant^Member/{path.name}")
        archive.writestr("../zqplant", b"outside")
        archive.writestr("zqplant/text.txt", b"zqplant")
    (source / "zqplant.gz").write_bytes(gzip.compress(b"zqplant"))
    os.mkfifo(source / "zqplant_pipe")
    (source / "zqplant_link").symlink_to("/nowhere/zqplant_target")
    (world / "private" / "zqplant_outside.dcm").write_bytes(good)
    (source / "zqplant_out.dcm").symlink_to(world / "private" / "zqplant_outside.dcm")
    (source / "patients.csv").write_text("path,patient_id\nzqplant_scan.nii.gz,ZqplantTable\n")
    nothing = world / "private" / "Zqplant empty"
    nothing.mkdir()
    (nothing / "zqplant.txt").write_text("zqplant")
    (world / "in").symlink_to(source)
    (world / "nothing").symlink_to(nothing)
    return world


def call(world: Path, code: str, *, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder without planted names, with MLflow in a file and a Prefect server that keeps its logs."""
    home.mkdir(exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env={
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_LOGGING_EXTRA_LOGGERS": "prdit",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file with its name, compressed ones also unpacked; every value of every table of every SQLite file."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        yield name, os.fsencode(name)
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        yield name, data
        if data.startswith(b"\x1f\x8b"):
            yield name, gzip.decompress(data)
        if data.startswith(b"SQLite format 3"):
            connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in connection.execute(f'SELECT * FROM "{table}"'):
                    for value in row:
                        yield f"{name}:{table}", value if isinstance(value, bytes) else str(value).encode()


def guesses(world: Path) -> list[bytes]:
    """Beginnings of unkeyed hashes of what a reader could guess: paths and names in the source, ids."""
    source = (world / "in").resolve()
    texts = ["Zqplantname^Jane", "Zqplantseries", *NUMBERS, str(source), str(world / "in"), str(source.parent)]
    for path in source.rglob("*"):
        texts += [str(path), str(path.relative_to(source)), path.name]
    digests = [
        kind(text.encode()).hexdigest() for text in texts for kind in (hashlib.sha256, hashlib.md5, hashlib.sha1)
    ]
    return [digest[:12].encode() for digest in digests]


def hits(world: Path, home: Path) -> list[str]:
    """Where something planted is found in a folder, the private record beside a store left out."""
    wanted = [MARK.encode(), *(number.encode() for number in NUMBERS)]
    hashes = guesses(world)
    found = []
    for name, data in contents(home):
        if ".ingests/" in name or name.startswith(("store.ingests", "none.ingests")):
            continue
        lower = data.lower()
        found += [f"{name}: {text.decode()}: {_around(lower, text)}" for text in wanted if text in lower]
        found += [f"{name}: hash {text.decode()}" for text in hashes if text in lower]
    return found


def _around(data: bytes, text: bytes) -> str:
    at = data.index(text)
    return data[max(0, at - 80) : at + 80].decode(errors="replace")


def test_the_command(world: Path, tmp_path: Path) -> None:
    settings = [f"--set=ingest.{name}={value}" for name, value in _SMALL.items()] + ["--set=runner.num_workers=1"]
    arguments = ["ingest", str(world / "in"), "--store", "store", *settings, "--json"]
    ran = call(
        world, f"import sys; sys.argv = ['prdit', *{arguments!r}]; from flows.cli import main; main()", home=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert {entry["series_uid"] for entry in report["committed"]} >= {"1.2.3.1"}, report
    assert len(report["committed"]) >= 3
    assert {"missing_slices", "unreadable_pixels", "unreadable_file", "unknown_format"} <= set(report["num_excluded"])
    assert hits(world, tmp_path) == []
    private = b"".join(data for name, data in contents(tmp_path) if name.startswith("store.ingests"))
    assert b"Zqplant_Pixels" in private  # the sweep can find what is there
    page = (tmp_path / "store.ingests" / "qc.html").read_text()
    assert "Zqplant_Pixels" in page
    for number in NUMBERS:
        assert number not in page
    arguments[1] = str(world / "nothing")
    ran = call(
        world, f"import sys; sys.argv = ['prdit', *{arguments!r}]; from flows.cli import main; main()", home=tmp_path
    )
    assert ran.returncode == 1
    assert hits(world, tmp_path) == []


def test_the_pipeline_with_prefect_and_mlflow(world: Path, tmp_path: Path) -> None:
    """A run that ends well, and one whose error names the source."""
    overrides = {"ingest": _SMALL, "runner": {"num_workers": 1}, "workdir": "work"}
    code = f"""
from flows.pipeline import pipeline
pipeline("tiny", {str(world / "in")!r}, "store", {overrides!r}, "ingest")
try:
    pipeline("tiny", {str(world / "nothing")!r}, "none", {overrides!r}, "ingest")
except Exception as error:
    print("REFUSED", type(error).__name__)
import time; time.sleep(3)
"""
    ran = call(world, code, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "REFUSED NoScansError" in ran.stdout
    assert MARK not in (ran.stdout + ran.stderr).lower()  # what a worker would log
    assert hits(world, tmp_path) == []
    (database,) = (tmp_path / "prefect").glob("*.db")
    with sqlite3.connect(database) as connection:
        tables = connection.execute("SELECT data FROM artifact WHERE type = 'table'").fetchall()
        logs = connection.execute("SELECT message FROM log").fetchall()
    assert "missing_slices" in str(tables)
    assert len(logs) > 5
