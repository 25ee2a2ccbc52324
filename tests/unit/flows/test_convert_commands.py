"""`prdit import-checkpoint` and `export-checkpoint`: exit codes, JSON, and the way from a published file to samples and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from flows.cli import app
from storage.files import read_json, sha256_file
from storage.volume_store import VolumeStore
from tests.factories import make_store
from tests.parity import sets
from tests.unit.tasks.foreign_files import TINY, published, save


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


SAMPLE = ("num_volumes=2", "num_steps=3", "device=cpu", "num_threads=1")
DRAW = [part for setting in SAMPLE for part in ("--set", f"sample.{setting}")]


def test_from_the_recorded_weights_to_samples_and_back(parity_dir: Path, tmp_path: Path) -> None:
    entry = sets.entries(parity_dir)["full_tinyA_s8_d2"]
    state = sets.build(parity_dir, entry).state_dict()
    config = {"model": "PRDiT-custom", "input_size": 8, "num_heads": 4}
    content = {
        "model": {k: 0.5 * v for k, v in state.items()},
        "ema": state,
        "config": config,
        "epoch": 1,
        "train_steps": 9,
    }
    save(tmp_path / "a.pt", content)
    imported = result("import-checkpoint", "a.pt")
    folder = tmp_path / ".prdit" / "imported" / sha256_file(tmp_path / "a.pt")[:12]
    assert imported["ref"] == {"kind": "checkpoint", "uri": str(folder), "digest": imported["ref"]["digest"]}
    assert imported["checkpoint"]["family"] == "global"
    assert imported["checkpoint"] == read_json(folder / "checkpoint.json")
    assert (imported["checkpoint"]["step"], imported["checkpoint"]["process"]["noise_std"]) == (9, 0.5)

    samples = result("sample", str(folder), *DRAW)["ref"]
    assert samples["kind"] == "samples"
    assert VolumeStore.open(Path(samples["uri"]) / "samples.zarr").volume_ids() == [
        "generated-00000",
        "generated-00001",
    ]
    assert len(list((Path(samples["uri"]) / "nifti").iterdir())) == 2
    by_ref = result("sample", json.dumps(imported["ref"]), *DRAW)
    assert (by_ref["cached"], by_ref["ref"]) == (True, samples)

    exported = result("export-checkpoint", str(folder), "b.pt")
    assert exported["sha256"] == sha256_file(tmp_path / "b.pt")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert sets.state_digest(back["ema"]) == entry["weights"]["sha256_state"]
    assert sets.state_digest(back["model"]) == sets.state_digest(content["model"])
    assert (back["train_steps"], back["config"]["model"]) == (9, "PRDiT-custom")


def test_text_says_what_was_recognised_and_assumed(tmp_path: Path) -> None:
    content = published(TINY)
    del content["model"]
    save(tmp_path / "a.pt", content)
    shown = call("import-checkpoint", "a.pt", "--output", "here", "--window", "-900", "500", "--axes", "zyx")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == "variant prdit (model name PRDiT-custom), 8³, 130000 steps"
    assert lines[1] == "width 48, depth 2, 4 heads, noise std 0.5"
    assert lines[2] == "axes zyx, 1.0 mm, model range [-900, 500] HU"
    assert lines[3].endswith("HU of samples are nominal")
    assert "no weights under 'model'" in lines[4]
    assert lines[5] == f"checkpoint: {tmp_path / 'here'}"
    assert json.loads(lines[6])["uri"] == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent.pt"], 1, "error: absent.pt does not exist; expected"),
        ([""], 2, "the path is empty"),
        (["a.pt", "--variant", "tf"], 1, "error: --variant tf contradicts the file"),
        (["a.pt", "--axes", "yxz"], 1, "error: axis order is 'yxz'"),
        (["a.pt", "--volume-size", "0"], 2, "--volume-size"),
        (["a.pt", "--output", "busy"], 1, "error: busy holds something else"),
        (["weights.pt"], 1, "error: The file does not state which model it is"),
    ],
)
def test_refusals_of_the_import(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    content = published(TINY)
    save(tmp_path / "a.pt", content)
    save(tmp_path / "weights.pt", content["ema"])
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "x").touch()
    found = call("import-checkpoint", *arguments)
    assert found.exit_code == code, found.output
    assert message in " ".join(found.stderr.split())
    assert not (tmp_path / ".prdit").exists()


def test_refusals_of_the_export(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", published(TINY))
    result("import-checkpoint", "a.pt", "--output", "here")
    for arguments, message in (
        (("here", "a.pt"), "exports never overwrite"),
        (("there", "b.pt"), "not the directory of a committed artifact"),
    ):
        found = call("export-checkpoint", *arguments)
        assert found.exit_code == 1
        assert message in found.stderr
    assert not (tmp_path / "b.pt").exists()


def test_samples_of_an_import_are_compared_with_a_named_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.pt", published(TINY))
    result("import-checkpoint", "a.pt", "--output", "here", "--spacing-mm", "8")
    samples = result("sample", "here", *DRAW)["ref"]
    found = call("evaluate", samples["uri"])
    assert found.exit_code == 1
    assert "was imported, so it names no store of its training" in found.stderr
    asked: list[Any] = []

    def stand_in(ref: Any, store: Any, split: Any, *_: Any, **__: Any) -> Any:
        asked.extend((ref, store, split))
        raise ValueError("measured")

    monkeypatch.setattr("flows.stages.evaluate_stage", stand_in)
    store = make_store(tmp_path / "store")
    grid = ("spacing_mm=8", "num_levels=1", "interpolation=linear")
    settings = [part for setting in grid for part in ("--set", f"ingest.{setting}")]
    found = call("evaluate", samples["uri"], "--store", "store", *settings)
    assert "measured" in found.stderr
    assert asked[0].model_dump() == samples
    assert asked[1] == store
    roles = read_json(asked[2].path / "split.json")["roles"]
    assert sorted(roles["train"] + roles["val"]) == ["v0", "v1", "v2"]


@pytest.mark.parametrize("command", ["import-checkpoint", "export-checkpoint"])
def test_help_has_examples(command: str) -> None:
    found = call(command, "--help")
    assert found.exit_code == 0
    assert f"prdit {command}" in found.stdout
