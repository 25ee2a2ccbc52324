"""Another package adds families, sampler, metric, extractor, operator, guide and configuration; no line of prdit names them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.documents.measurement import Measurement
from storage.documents.reconstruction import Reconstruction
from storage.files import read_json
from storage.phantom.series import write_demo_data
from storage.volume_store import VolumeStore
from tests.factories import make_data
from tests.unit.tasks.checkpoints import commit_pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LEFT_OUT = ("prdit-flow", "prdit-local", "prdit-no-overlap", "prdit-cascade", "hagan", "ldm", "wdm")
PACKAGE = Path(__file__).with_name("outsider")
REPOSITORY = Path(__file__).resolve().parents[2]


class Installed:
    """The package installed into a folder of its own, which only these subprocesses see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.site = root / "site"
        source = root / "source"  # building writes beside the sources
        subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--target", str(self.site), str(source)], check=True, timeout=300)
        write_demo_data(root / "scans", num_patients=3, small=True)
        self.said = ""  # by the whole chain

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command beside the package, in an empty folder."""
        path = os.pathsep.join([str(self.site), str(REPOSITORY)])
        env = {**os.environ, "PYTHONPATH": path, "PREFECT_HOME": str(self.root / "prefect")}
        done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=500, check=False)
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    def prdit(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-c", "from flows.cli import main; main()", *arguments, check=check)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("outsider"))


@pytest.fixture(scope="module")
def record(installed: Installed) -> dict[str, Any]:
    """What `prdit run` leaves of the whole chain, beside a broken configuration."""
    broken = installed.site / "toy_ct" / "configs" / "broken.yaml"
    broken.write_text("recipe: {one: {family: nobody, steps: 1, lr: 1}, 7")
    try:
        installed.said = installed.prdit("run", "--config", "toy", "--source", "scans", "--store", "store").stderr
    finally:
        broken.unlink()
    latest: dict[str, Any] = read_json(installed.root / ".prdit" / "work" / "runs" / "latest.json")
    return latest


def test_the_whole_chain_runs(record: dict[str, Any]) -> None:
    stages = ["ingest", "split", "train-codec", "train-latent", "sample", "evaluate"]
    assert (list(record["stages"]), record["error"]) == (stages, None)
    assert record["gates"]["codec_loss_ratio"] < 0.9
    assert record["gates"].keys() == {
        "codec_loss_ratio",
        "latent_loss_ratio",
        "codec_val_loss_ema",
        "latent_val_loss_ema",
    }


def test_both_optimisers_stepped_and_the_codec_stayed(record: dict[str, Any]) -> None:
    from storage.checkpoints import load_tensors

    codec, latent = (Path(record["stages"][f"train-{name}"]["ref"]["uri"]) for name in ("codec", "latent"))
    points = [json.loads(line) for line in (latent / "metrics.jsonl").read_text().splitlines()]
    assert sum("train/critic_loss" in point for point in points) > 0
    weights, start = load_tensors(latent / "model.safetensors"), load_tensors(codec / "ema.safetensors")
    for name, value in start.items():
        np.testing.assert_array_equal(weights[f"codec.{name}"], value)
    assert (weights["turns"].shape, weights["turns"].dtype, float(weights["turns"])) == ((), np.float64, 20.0)
    info = read_json(latent / "checkpoint.json")
    assert (info["family"], info["process"]["prediction"]) == ("toy-latent", "image")
    assert read_json(codec / "checkpoint.json")["process"] is None


def test_samples_come_from_its_sampler_and_its_metric_is_measured(record: dict[str, Any]) -> None:
    samples = Path(record["stages"]["sample"]["ref"]["uri"])
    assert read_json(samples / "samples.json")["sampler"]["name"] == "toy-midpoint"
    hu = VolumeStore.open(samples / "samples.zarr").read_level("generated-00000").hu
    assert hu.shape == (16, 16, 16)
    metrics = read_json(Path(record["metrics"]))
    shares = metrics["details"]["toy-air"]
    gap = metrics["figures"]["toy_air_share_gap"]["value"]
    assert gap == pytest.approx(shares["generated"] - shares["real"])
    assert 0.0 < shares["real"] < 1.0


def test_distances_are_in_features_of_its_extractor(record: dict[str, Any]) -> None:
    metrics = read_json(Path(record["metrics"]))
    used = metrics["features"]
    assert (used["extractor"], used["title"], used["width"], used["random"]) == (
        "toy-blocks",
        "toy: means of blocks",
        8,
        False,
    )
    assert metrics["figures"]["fid"]["features"] == used["digest"]
    assert "distances see coarse anatomy alone" in Path(record["report"]).read_text(encoding="utf-8")


def test_the_report_shows_it(record: dict[str, Any]) -> None:
    page = Path(record["report"]).read_text(encoding="utf-8")
    for words in (
        "Toy: share of air, generated minus real",
        "toy autoencoder",
        "toy latent denoiser",
        "0 where both have",
    ):
        assert words in page, words


def test_the_form_offers_its_configuration_and_stages(installed: Installed) -> None:
    code = "import json; from flows.pipeline import pipeline; print(json.dumps(pipeline.parameters.model_dump()))"
    fields = json.loads(installed.run(sys.executable, "-c", code).stdout)["properties"]
    assert "toy" in fields["configuration"]["enum"]
    assert {"train-codec", "train-latent", "train-local"} <= set(fields["stage"]["enum"])


def test_commands_know_its_trainings(installed: Installed, record: dict[str, Any]) -> None:
    codec = record["stages"]["train-codec"]["ref"]
    done = installed.prdit("train", "codec", "--config", "toy", "--store", "store", "--json")
    assert json.loads(done.stdout.splitlines()[-1]) == {
        **json.loads(done.stdout.splitlines()[-1]),
        "ref": codec,
        "cached": True,
    }
    refused = installed.prdit("sample", codec["uri"], "--config", "toy", check=False)
    assert refused.returncode == 1
    assert "draws nothing; train a toy-latent" in refused.stderr
    wrong = installed.prdit(
        "train", "latent", "--config", "toy", "--set", "recipe.latent.settings.critic=1", check=False
    )
    assert wrong.returncode == 2
    assert "recipe.latent.settings.critic: unknown key. Known here: critic_every, critic_lr" in wrong.stderr


def test_its_operator_and_its_guide_reconstruct(installed: Installed) -> None:
    """A profile of a held-out volume, by a model of ours of 8³ voxels: what is drawn has it, without a guide it has not."""
    root = installed.root / "measured"
    root.mkdir()
    snapshot, split = make_data(root)
    _, checkpoint = commit_pair(root, snapshot, split)
    (root / "profile.yaml").write_text("{name: toy-profile, thickness: 2, noise_std: 5}")
    model = ("--model", str(checkpoint.path), "--operator", str(root / "profile.yaml"))
    how = ("--guide", "toy-descent", "--samples", "2", "--steps", "5", "--workdir", str(root / "work"), "--json")
    command = ("reconstruct", str(snapshot.path), "--volume", "v2", *model, *how)
    pulled, free = (
        Reconstruction.load(Path(json.loads(done.stdout.splitlines()[-1])["ref"]["uri"]))
        for done in (installed.prdit(*command), installed.prdit(*command, "--strength", "0"))
    )
    assert max(pulled.residuals) < 4 * 5
    assert min(free.residuals) > 100
    assert pulled.truth is not None
    assert pulled.truth.accuracy.keys() == {"mean", "sample", "sirt"}
    measured = Measurement.load(
        Path(json.loads(installed.prdit(*command).stdout.splitlines()[-1])["measurement"]["uri"])
    )
    assert (measured.operator["thickness"], measured.shape) == (2, (4,))
    (root / "profile.yaml").write_text("{name: toy-profile, thickness: 3}")
    refused = installed.prdit(*command, check=False)
    assert refused.returncode != 0
    assert "thickness is 3; expected a divisor of the 8 slices" in refused.stderr


def test_another_version_of_its_metric_is_measured_again(installed: Installed, record: dict[str, Any]) -> None:
    samples = record["stages"]["sample"]["ref"]["uri"]
    evaluate = ("evaluate", samples, "--config", "toy", "--json")
    same = json.loads(installed.prdit(*evaluate).stdout.splitlines()[-1])
    assert same["cached"]
    (metadata,) = installed.site.glob("toy_ct-*.dist-info/METADATA")
    text = metadata.read_text()
    metadata.write_text(text.replace("Version: 0.1.0", "Version: 0.1.1"))
    try:
        other = json.loads(installed.prdit(*evaluate).stdout.splitlines()[-1])
    finally:
        metadata.write_text(text)
    assert not other["cached"]


def test_a_broken_configuration_does_not_keep_the_others_from_running(
    installed: Installed, record: dict[str, Any]
) -> None:
    assert record["error"] is None
    assert "the configuration 'broken' is left out" in installed.said


def test_it_is_a_row_of_a_benchmark(installed: Installed) -> None:
    """Checked and planned by the protocol of prdit's own rows; what a benchmark runs is what `prdit run` does."""
    (installed.root / "mine.yaml").write_text(
        "base: benchmark/tiny\n"
        "view: {size: 16, edge: 64}\n"
        "rows:\n"
        "  prdit: {overrides: {recipe: {local: {settings: {preset: XS/10/0}}, global: {settings: {preset: XS/10/1}}}}}\n"
        + "".join(f"  {row}: null\n" for row in LEFT_OUT)
        + "  toy: {title: Toy, configuration: toy, samplers: {published: {num_steps: 4}}}\n"
    )
    done = installed.prdit("benchmark", "mine.yaml", "--dry-run", "--json")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert (list(found["rows"]), found["runs"]) == (["prdit", "toy"], 6)
    toy = found["rows"]["toy"]
    assert [(each["name"], each["family"]) for each in toy["trainings"]] == [
        ("codec", "toy-codec"),
        ("latent", "toy-latent"),
    ]
    assert toy["samplers"] == {"published": "toy-midpoint, 4 evaluations"}
    assert not (installed.root / ".prdit" / "benchmark-store").exists()
