"""`prdit export` and `prdit send` as a person calls them: what is found, written and said, and with which exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from storage.artifacts import Ref, commit_artifact
from storage.documents.samples import Samples
from storage.files import write_json_atomic
from storage.snapshots import newest
from storage.volume_store import VolumeStore
from tests.exported import GENERATED, SCAN, SHAPE, sample_store, scan_store
from tests.ports import free_ports
from tests.unit.storage.documents.examples import EXAMPLES
from tests.unit.tasks.test_send import Received, node


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def result(*arguments: str) -> dict[str, Any]:
    """The JSON a command prints, where it succeeds."""
    found = call(*arguments, "--json")
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout.splitlines()[-1])


@pytest.fixture
def samples(tmp_path: Path) -> Ref:
    """An artifact of one generated volume."""
    folder = tmp_path / "samples"
    sample_store(folder / "samples.zarr")
    example = EXAMPLES["samples"]
    assert isinstance(example, Samples)
    example.model_copy(update={"store": "samples.zarr"}).save(folder)
    return commit_artifact(folder, "samples", stage="sample", recipe=1, inputs={}, config={})


def test_export_from_a_store_of_scans(tmp_path: Path) -> None:
    store = scan_store(tmp_path / "store")
    shown = call("export", "store", "out", "--all")
    assert (shown.exit_code, shown.stdout.strip()) == (0, "1 volume(s) as nifti in out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{SCAN}.nii.gz", "export.json"]
    made = result("export", "store", "dicom", SCAN, "--format", "dicom", "--level", "1", "--snapshot", "1")
    assert (made["format"], made["level"], made["snapshot"]) == ("dicom", 1, newest(store).digest)
    assert len(list((tmp_path / "dicom" / SCAN).iterdir())) == SHAPE[0] // 2
    ref = json.dumps(newest(store).model_dump())
    assert result("export", ref, "by-reference", "--all")["snapshot"] == newest(store).digest


@pytest.mark.parametrize("how", ["directory", "store", "reference"])
def test_export_from_samples(samples: Ref, tmp_path: Path, how: str) -> None:
    given = {
        "directory": "samples",
        "store": "samples/samples.zarr",
        "reference": json.dumps(samples.model_dump()),
    }[how]
    made = result("export", given, "out", GENERATED, "-f", "ome-zarr")
    assert [(one["volume_id"], one["synthetic"]) for one in made["volumes"]] == [(GENERATED, True)]
    assert VolumeStore.open(tmp_path / "samples" / "samples.zarr").synthetic is not None
    shown = call("export", given, "again", "--all")
    assert shown.stdout.strip() == "1 volume(s) as nifti in again, 1 of them synthetic"


def test_what_cannot_be_exported_is_one_sentence(samples: Ref, tmp_path: Path) -> None:
    scan_store(tmp_path / "store")
    (tmp_path / "file").write_text("")
    write_json_atomic(tmp_path / "checkpoint" / "checkpoint.json", {})
    commit_artifact(tmp_path / "checkpoint", "checkpoint", stage="train-local", recipe=1, inputs={}, config={})
    for arguments, words in {
        ("store", "out"): "Say which volumes",
        ("store", "file", "--all"): "file exists, and an export replaces nothing",
        ("store", "out", "--all", "--format", "png"): "expected one of nifti, dicom, ome-zarr",
        ("nothing", "out", "--all"): "No volume store at nothing",
        ("checkpoint", "out", "--all"): "is a checkpoint; expected a volume store, or samples",
        ("samples", "out", "--all", "--level", "1"): "has levels 0 to 0",
        ("store", "out", "--patient", ""): "0 patient keys",
    }.items():
        found = call("export", *arguments)
        assert found.exit_code in (1, 2), found.output
        assert words in " ".join(found.stderr.split()), (arguments, found.stderr)
        assert found.stderr.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_send_from_store_samples_and_folder(samples: Ref, tmp_path: Path) -> None:
    scan_store(tmp_path / "store")
    call("export", "store", "out", "--all", "--format", "dicom")
    received = Received()
    with node(received) as to:
        for arguments in (("store", "--all"), ("samples", GENERATED), ("out",), ("out", SCAN)):
            source, *rest = arguments
            sent = result("send", source, str(to), *rest)
            assert (sent["node"], sent["images"], sent["warnings"]) == (str(to), SHAPE[0], {})
        shown = call("send", "out", str(to))
        assert shown.stdout.strip() == f"1 volume(s), {SHAPE[0]} image(s) stored by {to}"
    assert len(received.images) == 2 * SHAPE[0]


def test_what_cannot_be_sent_is_one_sentence(tmp_path: Path) -> None:
    scan_store(tmp_path / "store")
    call("export", "store", "out", "--all", "--format", "dicom")
    nobody = f"NODE@127.0.0.1:{free_ports()}"
    for arguments, words in {
        ("store", nobody, "--all"): "cannot be reached (Connection refused)",
        ("store", nobody): "Say which volumes",
        ("store", "127.0.0.1:104", "--all"): "is no DICOM node; expected TITLE@HOST:PORT",
        ("out", nobody, "--level", "1"): "were chosen when it was made",
        ("out", nobody, "other"): "out has no volume other",
        ("store", nobody, "--all", "--calling", "a name that is too long"): "is no AE title",
    }.items():
        found = call("send", *arguments)
        assert found.exit_code in (1, 2), found.output
        assert words in " ".join(found.stderr.split()), (arguments, found.stderr)
