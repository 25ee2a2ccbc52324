"""`prdit plan` from the command line."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli import app

runner = CliRunner()


def test_json_has_published_counts_and_estimates() -> None:
    done = runner.invoke(app, ["plan", "--preset", "B/12/0", "--size", "64", "--batch", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["parameters"] == {"local": {"all": 39_156_160, "trainable": 39_156_160}}
    assert found["cpu"][0]["weights"] == 4 * 39_156_160
    assert {row["estimate"] for row in found["gpu"]} == {True}
    assert (found["size"], found["batch"], found["refine"]) == (64, 2, False)


def test_text_shows_the_refiner_and_says_estimate() -> None:
    done = runner.invoke(app, ["plan", "--preset", "XS/12/1", "--size", "128", "--batch", "1", "--refine"])
    assert done.exit_code == 0, done.output
    for words in ("train refiner, fp32", "sample refiner, bf16", "GPU memory (estimate)", "80 GB", "refined from half"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset", "M/12/4"], "Unknown preset 'M/12/4'"),
        (["--size", "100"], "not divisible by stride 8"),
        (["--batch", "0"], "batch is 0; expected at least 1"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], complaint: str) -> None:
    done = runner.invoke(app, ["plan", *arguments])
    assert done.exit_code == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.output
