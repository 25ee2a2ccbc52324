"""A site whose scans and store are in a bucket: every command that takes a store, as a person calls it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.doctor_services import check_services
from flows.retrain_setup import Setup
from storage.bucket_path import BucketPath
from storage.errors import ConfigError, MissingArtifactError, StoreFormatError
from storage.places import as_folder, as_place
from storage.snapshots import newest, open_snapshot
from storage.verification import check_volume
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.drills.bucket_ingest import upload
from tests.parity.location import REPOSITORY
from tests.s3 import BUCKET, Faults, s3_server, use
from tests.unit.storage.dicom_files import write_series

NAME = "ZQFORGET78"
STORE, SOURCE = f"s3://{BUCKET}/site/store", f"s3://{BUCKET}/incoming"
_SITE = f"""
configuration: tiny
store: {STORE}
overrides:
  ingest: {{min_slices: 4, min_length_mm: 0, min_width_mm: 0, spacing_mm: 4.0, num_levels: 2, interpolation: linear}}
  workdir: work
  runner: {{name: local, num_workers: 1}}
retention: {{min_free_gb: 0}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def home(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with an ingest of two patients."""
    home = tmp_path_factory.mktemp("home")
    write_series(home / "scans" / NAME, uid="1.2.3.1", patient_id=NAME, shape=(16, 20, 20))
    write_series(home / "scans" / "b", uid="1.2.3.2", patient_id="P", shape=(17, 20, 20))
    upload(home / "scans", "incoming")
    (home / ".prdit").mkdir()
    (home / ".prdit" / "site.yaml").write_text(_SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        ingest(as_place(SOURCE), as_place(STORE), settings(), runner=Local(1))
    return home


@pytest.fixture(autouse=True)
def here(server: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    use(monkeypatch, server)
    monkeypatch.chdir(home)
    monkeypatch.setenv("PRDIT_CACHE", str(home / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield home
    assert list(home.rglob("s3:*")) == []  # a URL that was taken for a folder


def settings(**changes: Any) -> IngestConfig:
    small: dict[str, Any] = {"min_slices": 4, "min_length_mm": 0, "min_width_mm": 0, "spacing_mm": 4.0, "num_levels": 2}
    return IngestConfig(**small | {"interpolation": "linear"} | changes)


def called(*arguments: str) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1]), result.output


def test_what_is_ingested_twice_is_unchanged() -> None:
    options = ["--store", STORE, "--config", "tiny", "--workdir", "work", "--set", "runner.num_workers=1"]
    for key, value in settings().model_dump().items():
        if key in ("min_slices", "min_length_mm", "min_width_mm", "spacing_mm", "num_levels", "interpolation"):
            options += ["--set", f"ingest.{key}={value}"]
    for _ in range(2):  # the first puts the artifact of the stage into the working folder
        code, found, _ = called("ingest", SOURCE, *options)
        assert (code, found["store"]) == (0, STORE)
    assert found["counts"]["unchanged"] == 2
    assert found["counts"]["committed"] == 0
    texts = b"".join(path.read_bytes() for path in Path("work").rglob("*") if path.is_file())
    assert b"secret-of-the-test" not in texts
    assert NAME.encode() not in texts


def test_store_commands() -> None:
    code, listed, _ = called("ls", STORE, "--volumes")
    first = sorted(listed["volumes"])[0]
    assert (code, len(listed["volumes"])) == (0, 2)
    assert called("verify", STORE, "--workers", "1")[:2] == (0, {"store": STORE, "findings": [], "notes": []})
    assert called("remove", STORE, first)[0] == 0
    assert len(called("ls", STORE, "--volumes")[1]["volumes"]) == 1
    assert called("remove", STORE, first, "--undo")[0] == 0
    code, found, _ = called("qc", STORE)
    assert (code, found["qc"]) == (0, str(Path(".prdit/s3/scans/site/store.ingests/qc.html").resolve()))
    assert called("lineage", first)[1]["volumes"] == {"all": [first]}


def test_site_status_maintenance_doctor_and_back_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, found, _ = called("status")
    assert (code, found["store"]["problem"], found["store_folder"]) == (0, "", STORE)
    code, found, _ = called("maintain", "--no-verify")
    assert code == 0
    assert {place["name"] for place in found["places"]} >= {"store", "stages"}
    assert ("store", f"{STORE} answers") in [
        (check.name, check.detail) for check in check_services(Path(".prdit/services"))
    ]
    code, found, _ = called("backup", "back-up")
    assert code == 0
    assert f"The store is in a bucket ({STORE})" in found["left_out"]
    assert (Path("back-up") / "settings" / "patient-key").is_file()
    setup = Setup.of()
    assert setup.store == as_place(STORE)
    assert setup.snapshot() == newest(VolumeStore.open(as_place(STORE)))
    faults = Faults(server)
    faults.rule = lambda method, path, number: "403"
    use(monkeypatch, faults.address)
    try:
        code, found, _ = called("status")
        assert code == 0
        assert "refuses these credentials" in found["store"]["problem"]
        assert [check.status for check in check_services(Path(".prdit/services")) if check.name == "store"] == ["fail"]
        code, found, _ = called("maintain")
        assert code == 1
        assert "refuses these credentials" in found["damage"][0]["message"]
    finally:
        faults.stop()


def test_another_folder_needs_the_key_of_the_store(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        StoreFormatError, match=r"folder that the first ingest ran in.*ingest.patient_key_file"
    ) as caught:
        ingest(as_place(SOURCE), as_place(STORE), settings(), runner=Local(1))
    assert str(tmp_path / ".prdit/s3/scans/site/store.patient-key") in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    key = home / ".prdit/s3/scans/site/store.patient-key"
    found = ingest(as_place(SOURCE), as_place(STORE), settings(patient_key_file=str(key)), runner=Local(1))
    assert found.counts["committed"] == 0


@pytest.mark.parametrize("parts", [("commits",), ("commits", "history"), ("history", "snapshots", "volumes")])
def test_half_a_copy_is_named(parts: tuple[str, ...]) -> None:
    copy = f"s3://{BUCKET}/copy-{'-'.join(parts)}"
    copied(copy, parts)
    for command in (["ls", copy], ["verify", copy, "--workers", "1"]):
        code, _, output = called(*command)
        assert code == 1, output
        assert "Traceback" not in output
        assert copy in output
        assert "prdit ingest" in output


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        ("commits/", "has lost (first: "),
        ("snapshots/", "snapshots/"),
        ("history/", "has no snapshot: no ingest has finished"),
    ],
)
def test_a_run_names_what_a_copy_has_not(left_out: str, sentence: str) -> None:
    copy = f"s3://{BUCKET}/without-{left_out.strip('/')}"
    parts = {"commits/", "history/", "snapshots/", "volumes/", "zarr.json", "patient-key.json"} - {left_out}
    copied(copy, tuple(parts))
    with pytest.raises(MissingArtifactError) as caught:
        open_snapshot(newest(VolumeStore.open(as_place(copy))))
    assert sentence in str(caught.value)
    assert copy in str(caught.value)
    assert "prdit ingest" in str(caught.value)


def copied(target: str, parts: tuple[str, ...]) -> None:
    """Copy the objects of the store whose names begin so."""
    client, prefix = boto3.client("s3"), BucketPath(target).key
    for name, _, _ in as_place(STORE).walk_objects():  # type: ignore[attr-defined]
        if name.startswith(parts):
            client.copy_object(
                Bucket=BUCKET, Key=f"{prefix}/{name}", CopySource={"Bucket": BUCKET, "Key": f"site/store/{name}"}
            )


def test_damaged_lists_are_set_aside_and_the_root_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRDIT_CACHE", str(tmp_path))
    copy = as_place(f"s3://{BUCKET}/damaged")
    copied(str(copy), ("commits/", "history/", "snapshots/", "volumes/", "patient-key", "exclusions/"))
    key = Path(".prdit/s3/scans/site/store.patient-key").resolve()
    number = max(path.name for path in (copy / "history").iterdir())
    client = boto3.client("s3")
    client.put_object(Bucket=BUCKET, Key=f"damaged/history/{number}", Body=b"{")
    volume = next(path for path in (copy / "volumes").iterdir() if path.is_dir())
    name = next(name for name, _, _ in volume.walk_objects() if "/c/" in name)  # type: ignore[attr-defined]
    client.put_object(Bucket=BUCKET, Key=f"damaged/volumes/{volume.name}/{name}", Body=b"x")
    report = ingest(as_place(SOURCE), copy, settings(patient_key_file=str(key)), runner=Local(1), repair=True)
    aside = f"{number.removesuffix('.json')}.damaged"
    assert any(f"set aside (renamed): history/{number}" in note for note in report.notes)
    assert any("root was lost or damaged" in note for note in report.notes)
    assert aside in [path.name for path in (copy / "history").iterdir()]
    assert called("verify", str(copy), "--workers", "1")[:2] == (0, {"store": str(copy), "findings": [], "notes": []})


@pytest.mark.slow
def test_two_ingests_at_once_from_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRDIT_CACHE", str(tmp_path / "cache"))
    code = (
        "import sys; from storage.places import as_place; from tasks.ingest.config import IngestConfig\n"
        "from tasks.ingest.run import ingest; from tasks.run.runners import Local\n"
        "if __name__ == '__main__':\n"
        "    config = IngestConfig.model_validate_json(sys.argv[3])\n"
        "    ingest(as_place(sys.argv[1]), as_place(sys.argv[2]), config, runner=Local(1))\n"
    )
    (tmp_path / "run.py").write_text(code)
    shared, key = f"s3://{BUCKET}/shared", tmp_path / "key"
    running = []
    for number, source in enumerate((f"{SOURCE}/{NAME}", f"{SOURCE}/b")):
        (folder := tmp_path / str(number)).mkdir()
        words = [sys.executable, str(tmp_path / "run.py"), source, shared]
        words.append(settings(patient_key_file=str(key)).model_dump_json())
        running.append(subprocess.Popen(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}))
    assert [process.wait() for process in running] == [0, 0]
    store, listed = open_snapshot(newest(VolumeStore.open(as_place(shared))))
    assert len(listed.volumes) == 2
    assert [check_volume(store, name) for name in listed.volumes] == [None, None]
    assert list(tmp_path.rglob("s3:*")) == []


def test_what_must_be_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the inbox is s3://bucket/x, in an object store"):
        as_folder("s3://bucket/x", "the inbox")
    with pytest.raises(ConfigError, match="the inbox is s3://bucket/x"):
        Setup.of(inbox="s3://bucket/x")
    for arguments in (
        ["prune", "--workdir", "s3://bucket/work"],
        ["ingest", "scans", "--store", STORE, "--set", "ingest.patient_key_file=s3://bucket/key"],
        ["backup", "s3://bucket/back-up"],
    ):
        code, found, output = called(*arguments)
        assert code in (1, 2), output
        assert "machine" in found["error"]


def test_zz_a_patient_is_forgotten_everywhere(home: Path) -> None:
    """Last, as it changes the store."""
    store = VolumeStore.open(as_place(STORE))
    (volume,) = [name for name in store.volume_ids() if store.commit_record(name).scan.scan == "1.2.3.1"]  # type: ignore[union-attr]
    store.read_level(volume)
    assert [path for path in (home / "cache" / "levels").iterdir() if volume in path.name]
    code, shown, output = called("forget", "--volume", volume)
    assert (code, shown["done"]) == (0, None)
    code, done, more = called("forget", "--volume", volume, "--yes")
    assert (code, done["done"]["deleted_volumes"]) == (0, 1)
    assert NAME not in output + more
    assert volume not in VolumeStore.open(as_place(STORE)).volume_ids()
    assert [path for path in (home / "cache" / "levels").iterdir() if volume in path.name] == []
    below = [name for name, _, _ in as_place(STORE).walk_objects()]  # type: ignore[attr-defined]
    assert [name for name in below if volume in name] == []
    assert len([name for name in below if "forget.lock" in name]) == 1
    code, again, _ = called("forget", "--patient-key", shown["patient_key"], "--yes")
    assert (code, again["done"]["deleted_volumes"]) == (0, 0)
    assert called("verify", STORE, "--workers", "1")[0] == 0
    kept = b"".join(path.read_bytes() for path in (home / ".prdit/s3/scans/site").rglob("*") if path.is_file())
    assert volume.encode() not in kept
