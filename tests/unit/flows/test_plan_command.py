"""`prdit plan` from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app

runner = CliRunner()


def test_json_has_published_counts_and_estimates() -> None:
    done = runner.invoke(app, ["plan", "--config", "published/lidc-128", "--batch", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["parameters"] == {
        "local": {"all": 39_156_160, "trainable": 39_156_160},
        "global": {"all": 93_228_992, "trainable": 54_072_832},
    }
    assert found["cpu"][0]["weights"] == 4 * 39_156_160
    assert {row["estimate"] for row in found["gpu"]} == {True}
    assert (found["configuration"], found["batch"]) == ("published/lidc-128", {"local": 2, "global": 2})


def test_text_shows_the_refiner_and_says_estimate(tmp_path: Path) -> None:
    config = tmp_path / "[" / "tiny].yaml"  # read as the closing tag [/tiny] it would end in a traceback
    config.parent.mkdir()
    config.write_text("base: tiny\n")
    done = runner.invoke(app, ["plan", "--config", str(config), "--set", "recipe.refiner.enabled=true"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())  # lines end where the path above them lets them
    for words in (
        "[/tiny].yaml",
        "train refiner, fp32",
        "sample refiner, bf16",
        "reconstruct refiner, fp32",
        "GPU memory (estimate)",
        "80 GB",
        "local 2, global 2, refiner 1",
    ):
        assert words in text


def test_settings_reach_the_plan() -> None:
    joint = ["--set", "recipe.global.settings.joint_local=true", "--set", "recipe.local.process=flow"]
    counts = []
    for settings in ([], joint):
        done = runner.invoke(app, ["plan", "--config", "tiny", *settings, "--json"])
        assert done.exit_code == 0, done.output
        counts.append(json.loads(done.stdout.strip().splitlines()[-1])["parameters"]["global"])
    frozen, trained = counts
    assert trained["trainable"] == trained["all"] < frozen["all"]  # one output channel less
    assert frozen["trainable"] < frozen["all"]


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--set", "recipe.local.settings.preset=M/12/0"], 2, "recipe.local: Unknown preset 'M/12/0'"),
        (["--set", "recipe.local.view={size: 100, edge: 100}"], 2, "not divisible by stride 8"),
        (["--config", "lidc"], 2, "'lidc' is not a configuration"),
        (["--batch", "0"], 2, "Invalid value for '--batch'"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], code: int, complaint: str) -> None:
    done = runner.invoke(app, ["plan", *arguments])
    assert done.exit_code == code
    assert complaint in done.stderr
    assert "Traceback" not in done.output
