"""Forget a patient whose scan went through the whole pipeline, with kill -9 on the way; then look for every trace.

The patient has a PatientID and voxels that occur nowhere else. Afterwards neither is found in store, caches, working folder or
MLflow: not in any file's bytes, not in any decoded array, not in any picture that showed the patient.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pydicom
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load_config
from flows.console import run_stages
from storage.artifacts import Ref, load_provenance
from storage.documents.snapshot import Roles
from storage.errors import InputError
from storage.numbered import Numbered
from storage.ome_zarr import open_level
from storage.phantom.series import write_demo_data
from storage.registry import CHAMPION, REFUSED, Registry
from storage.snapshots import load_snapshot, newest
from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store
from tasks.retrain.decisions import promote
from tasks.run.runners import Local
from tests.parity.location import REPOSITORY
from tests.traced_kill import trace_and_kill

NAME = "ZQFORGETME77"
_PICTURE = re.compile(rb"data:image/[a-z]+;base64,([A-Za-z0-9+/=]{200,})")
_WEIGHTS = {f"{name}.safetensors" for name in ("model", "ema", "optimizer", "buffers")}
_LINES = (40, 120, 200, 290, 380)  # of the code that forgets, before which it is killed
_MOST = 12  # stretches of voxels, and pictures, that are looked for
_FEW = 9  # different values in a row that occurs nowhere else


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Pipeline, forget with `rounds` kills, search.

    Raises: AssertionError: something of the patient is left, came back, or a model that learned from the patient can be promoted.
    """
    uri = f"sqlite:///{root / 'mlflow.db'}"
    with mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": uri}):
        return _run(root, rounds, uri)


def _run(root: Path, rounds: int, uri: str) -> dict[str, Any]:
    series = _source(root / "source")
    config = load_config("tiny", _settings(root))
    ingested = run_stages(config, "ingest", {})
    store = VolumeStore.open(root / "store")
    volume = _volume_of(store, series)
    key = load_snapshot(newest(store)).volumes[volume].patient_key
    Numbered(store.path / "roles" / config.split.name, Roles).update(lambda old: Roles(roles={key: "train"}))
    outcome = run_stages(config, "evaluate", {"ingest": ingested.ref})
    rows = _rows(store, volume)
    pictures = _pictures(root, outcome.ref)
    model = _model(outcome.ref)
    version = Registry(uri, workdir=root / "work").register(model, "", {})
    promote(Registry(uri, workdir=root / "work"), root / "decisions", version.version, reason="drill", by="drill")
    before = _found(root, [NAME.encode(), series.encode(), key.encode()], rows, pictures)
    assert before["words"], "the search finds nothing where there is something"
    assert before["rows"], "the search finds no voxels where there are some"
    assert before["pictures"], "the search finds no pictures where there are some"
    killed = [line for line in _LINES[:rounds] if _killed(root, line) == -9]
    _forget_here(root)
    after = _found(root, [NAME.encode(), series.encode(), key.encode()], rows, pictures)
    assert after["words"] == [f"store/tombstones/{key}.json"], after["words"]
    assert (after["rows"], after["pictures"]) == ([], []), after
    assert verify_store(store.path, num_workers=1)[0] == []
    _check_refused(uri, root, model)
    report = ingest(root / "source", store.path, config.ingest, runner=Local(1))
    assert {entry.reason for entry in report.skipped if entry.series_uid == series} == {"forgotten"}
    copy = _without_id(root / "source", root / "copy", series)
    again = ingest(copy, store.path, config.ingest, runner=Local(1))
    assert {entry.reason for entry in again.skipped} == {"forgotten"}
    assert volume not in store.volume_ids()
    assert _found(root, [], rows, pictures)["rows"] == []
    counts = {name: len(found) for name, found in before.items()}
    return {"rounds": rounds, "killed_before_line": killed, "files_with_traces_before": counts, "left": after["words"]}


def _settings(root: Path) -> dict[str, Any]:
    short = {"steps": 4, "val_every": 2, "checkpoint_every": 2}
    places = {"source": str(root / "source"), "store": str(root / "store"), "workdir": str(root / "work")}
    return places | {"recipe": {"local": short, "global": short}}


def _source(folder: Path) -> str:
    """Phantoms, one of them of the patient with the planted id and noise; its SeriesInstanceUID."""
    write_demo_data(folder, num_patients=3, small=True)
    chance, series = np.random.default_rng(5), ""
    for path in sorted((folder / "patient-0001").rglob("*.dcm")):
        data = pydicom.dcmread(path)
        data.PatientID = NAME
        if path.parent.name == "chest":
            pixels = data.pixel_array + chance.integers(-40, 40, data.pixel_array.shape)
            data.PixelData = pixels.clip(0, None).astype(data.pixel_array.dtype).tobytes()
            series = str(data.SeriesInstanceUID)
        data.save_as(path)
    return series


def _without_id(source: Path, target: Path, series: str) -> Path:
    """A copy of the patient's scan without PatientID and with another SeriesInstanceUID."""
    target.mkdir()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            data = pydicom.dcmread(path, force=True)
            if str(data.get("SeriesInstanceUID", "")) == series:
                data.PatientID, data.SeriesInstanceUID = "", "1.2.3.99"
                data.save_as(target / path.name)
    return target


def _volume_of(store: VolumeStore, series: str) -> str:
    facts = {volume_id: store.commit_record(volume_id).scan for volume_id in store.volume_ids()}
    return next(volume_id for volume_id, scan in facts.items() if scan and scan.scan == series)


def _rows(store: VolumeStore, volume: str) -> list[bytes]:
    """Stretches of 16 voxels of the patient at every level, of many values."""
    found = []
    for level in range(store.grid.num_levels):
        hu = store.read_level(volume, level).hu
        middle = hu[:: max(1, len(hu) // 8), :: max(1, hu.shape[1] // 8)].reshape(-1, hu.shape[2])
        found += [
            row[k : k + 16].tobytes()
            for row in middle
            for k in range(0, len(row) - 16, 16)
            if len(set(row[k : k + 16])) > _FEW
        ]
    return found[:: max(1, len(found) // _MOST)]


def _pictures(root: Path, report: Ref) -> set[bytes]:
    """Pieces of the pictures that show the patient: of the report's page, and those of the quality page."""
    page = (report.path / "report.html").read_bytes()
    kept = {
        path.read_bytes()
        for path in (report.path / "figures").glob("*.png")
        if not path.name.startswith(("real-", "pair-"))
    }
    found = {base64.b64decode(one) for one in _PICTURE.findall(page)} - kept
    found |= {path.read_bytes() for path in (report.path / "figures").glob("real-*.png")}
    found |= {path.read_bytes() for path in (report.path / "figures").glob("pair-*.png")}
    return {picture[200:232] for picture in sorted(found)[:: max(1, len(found) // _MOST)]}


def _found(root: Path, words: list[bytes], rows: list[bytes], pictures: set[bytes]) -> dict[str, list[str]]:
    """Files that have a word, a stretch of voxels (in their bytes or decoded), or a picture (in their bytes or as base64)."""
    found: dict[str, list[str]] = {"words": [], "rows": [], "pictures": []}
    for path in _files(root):
        data, name = path.read_bytes(), path.relative_to(root).as_posix()
        if any(word in data for word in words):
            found["words"].append(name)
        if any(row in data for row in rows):
            found["rows"].append(name)
        inside = [base64.b64decode(one) for one in _PICTURE.findall(data)] if path.suffix == ".html" else []
        if any(picture in blob for blob in (data, *inside) for picture in pictures):
            found["pictures"].append(name)
    for group in root.rglob("zarr.json"):
        if (group.parent / "0" / "zarr.json").is_file():
            level = 0
            while (group.parent / str(level) / "zarr.json").is_file():
                values = np.asarray(open_level(group.parent / str(level))[...]).tobytes()
                if any(row in values for row in rows):
                    found["rows"].append(group.parent.relative_to(root).as_posix())
                level += 1
    return {name: sorted(set(places)) for name, places in found.items()}


def _files(root: Path) -> Iterator[Path]:
    """All but the sources and weights, which stay."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in _WEIGHTS and path.relative_to(root).parts[0] not in ("source", "copy"):
            yield path


def _model(report: Ref) -> Ref:
    samples = load_provenance(report).inputs["samples"]
    return load_provenance(samples).inputs["checkpoint"]


def _check_refused(uri: str, root: Path, model: Ref) -> None:
    registry = Registry(uri, workdir=root / "work")
    (version,) = registry.versions()
    assert version.aliases == (CHAMPION,)  # what uses it does not stop at once
    assert version.tags[REFUSED].startswith("a patient was forgotten on ")
    assert load_provenance(model).forgotten == version.tags[REFUSED]
    registry.delete_alias(CHAMPION)
    try:
        promote(registry, root / "decisions", version.version, reason="drill", by="drill")
    except InputError:
        return
    raise AssertionError("a model that learned from a forgotten patient was promoted")


def _killed(root: Path, line: int) -> int:
    """Exit code of a process that forgets the patient, killed before a line of it."""
    command = [sys.executable, "-m", "tests.drills.forgetting", "forget", str(root), str(line)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=300).returncode


def _forget_here(root: Path) -> None:
    result = CliRunner().invoke(app, ["forget", "-", "--yes", "--json", *_places(root)], input=NAME + "\n")
    assert result.exit_code == 0, result.output
    assert NAME not in result.output


def _places(root: Path) -> list[str]:
    return ["--store", str(root / "store"), "--workdir", str(root / "work")]


if __name__ == "__main__":
    if sys.argv[1] == "forget":
        names = (
            "tasks/patients/forget.py",
            "tasks/patients/places.py",
            "tasks/patients/tracked.py",
            "storage/tombstones.py",
        )
        trace_and_kill(int(sys.argv[3]), tuple(str(REPOSITORY / name) for name in names))
        _forget_here(Path(sys.argv[2]))
    else:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
