"""`prdit reproduce`: the whole protocol on a checkpoint built from recorded weights, and what it refuses before it samples."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flows import reproduce_command
from flows.cli import app
from flows.config import PipelineConfig
from flows.published_figures import published_figures
from flows.reproduce_command import protocol
from prdit_models.intensity import HounsfieldWindow
from storage.artifacts import Ref
from storage.documents.report import Report
from storage.errors import InputError
from storage.files import sha256_file
from tasks.model.checkpoint import load_info
from tests.factories import make_store
from tests.parity import sets
from tests.unit.tasks.foreign_files import FLOW, TF, TINY, published, save

WINDOW = HounsfieldWindow.of_mapping(-1000.0, 1000.0, "published-lidc")
# what our own export records beside the published content: a box of 128 mm instead of 256, at 8 mm
SMALL = {"axes": "xyz", "spacing_mm": 8.0, "noise_std": 0.5, "intensity": asdict(WINDOW), "edge": 16, "centre": None}
QUICK = (
    "sample.num_volumes=3",
    "sample.num_steps=4",
    "sample.device=cpu",
    "sample.num_threads=1",
    "sample.nifti=false",
)
MEASURE = (
    "evaluate.extractor=random",
    "evaluate.device=cpu",
    "evaluate.num_threads=1",
    "evaluate.num_subsamples=5",
    "evaluate.num_references=0",
)
CRITICS = ("steps=2", "width=2", "num_seeds=2")
SETTINGS = [*QUICK, *MEASURE, *(f"evaluate.metrics.wasserstein.{one}" for one in CRITICS)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reproduce", *arguments])


def words(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def quick() -> list[str]:
    return [part for setting in SETTINGS for part in ("--set", setting)]


def small_checkpoint(path: Path, **changes: Any) -> Path:
    content = published(TINY)
    content["config"]["prdit"] = SMALL | changes
    return save(path, content)


def test_the_whole_protocol_on_recorded_weights(
    parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = sets.build(parity_dir, sets.entries(parity_dir)["full_tinyA_s8_d2"]).state_dict()
    config = {"model": "PRDiT-custom", "input_size": 8, "num_heads": 4, "prdit": SMALL}
    save(tmp_path / "a.pt", {"model": state, "ema": state, "config": config, "epoch": 1, "train_steps": 130000})
    make_store(tmp_path / "store", num_volumes=5)
    shown = call("a.pt", "--store", "store", *quick(), "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout.splitlines()[-1])
    assert found["protocol"] == "published/lidc-128"
    assert Path(found["checkpoint"]["uri"]).name == sha256_file(tmp_path / "a.pt")[:12]
    reference = ["--reference", found["report"]["uri"]]
    report = Report.load(Path(found["report"]["uri"]))
    assert Path(found["page"]).is_file()
    assert (report.n_real, report.n_generated) == (5, 3)
    sampler = report.sampler
    assert (sampler.name, sampler.schedule, sampler.output) == ("predictor-corrector", "published", "state")
    assert (sampler.weights, sampler.seed, sampler.predictor_step) == ("ema", 42, 2)
    assert found["figures"]["fid_random_features"]["value"] == report.figures["fid_random_features"].value
    assert found["figures"]["wasserstein"]["value"] is not None
    assert found["paper"] is None
    assert found["not_as_published"][:2] == [
        "sample.num_volumes is 3; published 1000.",
        "sample.num_steps is 4; published 1000.",
    ]
    assert any("--medicalnet FILE" in sentence for sentence in found["not_as_published"])
    assert "The store was resampled by 'linear' interpolation; published 'cubic'." in found["not_as_published"]

    asked: list[PipelineConfig] = []
    monkeypatch.setattr(reproduce_command, "run_stages", lambda config, *_: asked.append(config) or 1 / 0)
    distance = found["figures"]["wasserstein"]["value"]
    for settings, message in (
        ([], ""),
        (["--set", "evaluate.metrics.wasserstein.steps=7"], "'steps': 7"),
        (["--set", "sample.num_volumes=4"], "generated volumes: 3 there, 4 here"),
    ):
        again = call(str(tmp_path / found["checkpoint"]["uri"]), "--store", "store", *quick(), *settings, *reference)
        expected = message or ("division by zero" if distance > 0 else "has no positive Wasserstein distance")
        assert expected in again.stderr
    assert [each.evaluate.metrics["wasserstein"]["reference_distance"] for each in asked] == [distance] * len(asked)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PipelineConfig, str, dict[str, Ref]]]:
    """What the command would run."""
    calls: list[Any] = []

    def stand_in(config: PipelineConfig, last: str, given: dict[str, Ref]) -> Any:
        calls.append((config, last, given))
        raise InputError("stop here")

    monkeypatch.setattr(reproduce_command, "run_stages", stand_in)
    monkeypatch.setattr("tasks.evaluate.features.load_extractor", lambda config: None)
    return calls


def test_medicalnet_weights_are_recorded_by_their_digest(asked: Any, tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "a.pt")
    snapshot = make_store(tmp_path / "store")
    (tmp_path / "resnet_50.pth").write_bytes(b"weights")
    digest = sha256_file(tmp_path / "resnet_50.pth")
    assert "stop here" in call("a.pt", "--store", "store", "--medicalnet", "resnet_50.pth").stderr
    [(config, last, given)] = asked
    extractor = config.evaluate.extractor
    assert (extractor.name, extractor.path, extractor.sha256) == (
        "medicalnet",
        str(tmp_path / "resnet_50.pth"),
        digest,
    )
    assert last == "evaluate"
    assert given["ingest"] == snapshot
    assert given["train-global"].kind == "checkpoint"
    sample = config.sample
    assert (sample.num_volumes, sample.num_steps, sample.schedule, sample.output) == (1000, 1000, "published", "state")
    call("a.pt", "--store", "store", "--medicalnet", "resnet_50.pth", "--medicalnet-sha256", "0" * 64)
    assert asked[-1][0].evaluate.extractor.sha256 == "0" * 64


def test_what_cannot_end_is_refused_before_it_samples(asked: Any, tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "a.pt")
    small_checkpoint(tmp_path / "far.pt", spacing_mm=1.0)
    make_store(tmp_path / "store")
    make_store(tmp_path / "single", num_volumes=1)
    imported = tmp_path / ".prdit" / "imported" / sha256_file(tmp_path / "a.pt")[:12]
    assert call("a.pt", "--store", "store").exit_code == 1  # by the stand-in; imported now
    asked.clear()
    for arguments, message in (
        (("absent.pt", "--store", "store"), "absent.pt does not exist"),
        (("a.pt", "--store", "absent"), "absent"),
        (("far.pt", "--store", "store"), "has 8.0 mm voxels, the checkpoint was trained at 1.0 mm"),
        (
            ("a.pt", "--store", "store", "--set", "sample.num_volumes=1"),
            "needs at least 2 volumes on each side; 1 would be",
        ),
        (("a.pt", "--store", "single"), "and compared with the 1 of single"),
        (("a.pt", "--store", "store", "--medicalnet", "no.pth"), "--medicalnet no.pth: there is no such file"),
        (("a.pt", "--store", "store", "--medicalnet-sha256", "0" * 64), "without --medicalnet"),
        ((str(imported), "--store", "store", "--variant", "prdit"), "is imported already"),
        (("a.pt", "--store", "store", "--reference", str(imported)), "not by a checkpoint"),
        (("a.pt", "--store", "store", "--reference", "absent"), "absent is not the directory of a committed artifact"),
    ):
        found = call(*arguments)
        assert found.exit_code == 1, found.output
        assert message in words(found.stderr)
    assert asked == []


@pytest.mark.parametrize(
    ("network", "name", "dataset", "expected"),
    [
        (TINY, "PRDiT-custom", "lidc", ("published/lidc-128", {})),
        (TINY, "PRDiT-custom", "rad", ("published/rad-128", {})),
        (TF, "DiT-custom", "lidc", ("published/lidc-128", {"sample": {"num_steps": 250}})),
        (FLOW, "PRDiT-custom", "lidc", ("published/fm-256", {})),
    ],
)
def test_the_protocol_of_a_checkpoint(
    asked: Any, tmp_path: Path, network: Any, name: str, dataset: str, expected: Any
) -> None:
    save(tmp_path / "a.pt", published(network, name))
    make_store(tmp_path / "store", spacing_mm=0.8 if dataset == "rad" else 1.0)
    assert "stop here" in call("a.pt", "--store", "store", "--dataset", dataset).stderr
    [(config, _, given)] = asked
    info = load_info(next(ref for ref in given.values() if ref.kind == "checkpoint"))
    assert protocol(info) == expected
    steps = {"published/fm-256": 100}.get(expected[0], 1000)
    assert config.sample.num_steps == expected[1].get("sample", {}).get("num_steps", steps)
    assert config.sample.sampler == ("euler" if network is FLOW else "predictor-corrector")


def test_the_papers_figures_are_those_of_the_model() -> None:
    found = published_figures("global", "lidc", 128, 12)
    assert found is not None
    assert (found.model, found.fid, found.mmd) == ("PRDiT-12L", 0.00141, 0.1501)
    assert published_figures("global", "lidc", 256, 12) is None
    shown = reproduce_command._text(
        {
            "protocol": "published/lidc-128",
            "paper": asdict(found),
            "page": "report.html",
            "not_as_published": [],
            "figures": {
                "fid": {"value": 0.0016, "unit": "", "interval": {"low": 0.0015, "high": 0.0017}},
                "mmd": {"value": None, "unit": "", "interval": None},
                "hu_mean_real": {"value": 1.0, "unit": "HU", "interval": None},
            },
        }
    )
    assert shown.splitlines()[2].split() == ["fid", "×10³", "1.6", "[1.5,", "1.7]", "1.41"]
    assert shown.splitlines()[3].split() == ["mmd", "–", "0.1501"]
    assert "hu_mean_real" not in shown
