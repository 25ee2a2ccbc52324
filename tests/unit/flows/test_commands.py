"""`prdit train`, `sample` and `evaluate`: which stages are asked for, with which configuration and what is given."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.config import PipelineConfig, load_config
from flows.console import overrides
from storage.artifacts import Ref, commit_artifact
from storage.errors import ConfigError
from tasks.run.stage import StageOutcome
from tests.factories import make_data, make_store

Asked = list[tuple[PipelineConfig, str, dict[str, Ref]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """What commands ask for, instead of running it."""
    calls: Asked = []

    def stand_in(config: PipelineConfig, last: str, given: dict[str, Ref]) -> StageOutcome:
        calls.append((config, last, given))
        made = Ref(kind="checkpoint", uri=f"/work/{last}", digest="sha256:1")
        return StageOutcome(ref=made, cached=False, seconds=61.0, mlflow_run_id="")

    monkeypatch.setattr("flows.cli.run_stages", stand_in)
    monkeypatch.chdir(tmp_path)
    return calls


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def words(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Ref:
    """A committed artifact that says it is a checkpoint of a training on a store of three volumes."""
    store, split = make_data(tmp_path)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_text("none")
    return commit_artifact(
        folder, "checkpoint", stage="train-local", recipe=1, inputs={"snapshot": store, "split": split}, config={}
    )


@pytest.mark.parametrize("name", ["local", "global"])
def test_train_asks_for_the_stage_of_a_training(asked: Asked, name: str) -> None:
    shown = call("train", name, "--config", "tiny", "--store", "mine", "--set", "recipe.local.steps=7")
    assert shown.exit_code == 0, shown.output
    assert asked == [(load_config("tiny", {"store": "mine", "recipe": {"local": {"steps": 7}}}), f"train-{name}", {})]
    assert shown.stdout.splitlines()[0] == f"checkpoint in 61 s: /work/train-{name}"


def test_train_switches_the_refiner_on(asked: Asked) -> None:
    assert call("train", "refiner", "-c", "tiny", "--set", "recipe.refiner.steps=7").exit_code == 0
    refiner = {"enabled": True, "steps": 7}
    assert asked == [(load_config("tiny", {"recipe": {"refiner": refiner}}), "train-refiner", {})]


@pytest.mark.parametrize(("name", "stage"), [("global", "train-local"), ("refiner", "train-global")])
def test_train_takes_a_checkpoint_to_start_from(asked: Asked, checkpoint: Ref, name: str, stage: str) -> None:
    for given in (checkpoint.uri, checkpoint.model_dump_json()):
        assert call("train", name, "-c", "tiny", "--start", given).exit_code == 0
    assert [(last, refs) for _, last, refs in asked] == [(f"train-{name}", {stage: checkpoint})] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("best",), 2, "error: 'best' is not a training of configuration 'tiny', which has local, global, refiner."),
        (("local", "--start", "x"), 2, "training 'local' is trained from scratch (recipe.local.start)"),
        (("global", "--start", "x"), 1, "error: x is not the directory of a committed artifact"),
        (("global", "--start", '{"kind": "checkpoint"}'), 2, "is not a reference"),
        (("local", "--set", "recipe.local.rate=1"), 2, "recipe.local.rate: unknown key. Known here: accumulation, "),
        (("local", "--set", "recipe.local.steps"), 2, "must read KEY=VALUE, for example --set recipe.local.steps=100"),
        (("refiner", "--set", "recipe.global.enabled=false"), 2, "start is 'global', which is not enabled"),
        ((), 2, "Missing argument"),
    ],
)
def test_refusals_of_train(asked: Asked, arguments: tuple[str, ...], code: int, message: str) -> None:
    found = call("train", *arguments, "--config", "tiny")
    assert found.exit_code == code, found.output
    assert message in words(found.stderr)
    assert asked == []


def test_a_damaged_checkpoint_is_no_start(asked: Asked, checkpoint: Ref) -> None:
    (checkpoint.path / "weights").write_text("other")
    found = call("train", "global", "-c", "tiny", "--start", checkpoint.uri)
    assert found.exit_code == 1
    assert "weights" in found.stderr
    assert asked == []


@pytest.mark.parametrize("refined", [False, True])
def test_sample_draws_from_what_it_is_given(asked: Asked, checkpoint: Ref, refined: bool) -> None:
    settings = f"recipe.refiner.enabled={refined}"
    assert call("sample", checkpoint.uri, "-c", "tiny", "--set", settings).exit_code == 0
    [(_, last, given)] = asked
    assert (last, list(given.values())) == ("sample", [checkpoint])


def samples_of(checkpoint: Ref, folder: Path) -> Ref:
    folder.mkdir()
    (folder / "samples").write_text("none")
    return commit_artifact(folder, "samples", stage="sample", recipe=1, inputs={"checkpoint": checkpoint}, config={})


def test_evaluate_compares_with_the_store_of_the_training(asked: Asked, checkpoint: Ref, tmp_path: Path) -> None:
    samples = samples_of(checkpoint, tmp_path / "samples")
    other = make_store(tmp_path / "other")  # of the training's grid, which is not the configuration's
    assert call("evaluate", samples.uri, "-c", "tiny").exit_code == 0
    assert call("evaluate", samples.uri, "-c", "tiny", "--store", "other").exit_code == 0
    (_, last, given), (config, _, others) = asked
    assert last == "evaluate"
    assert {stage: Path(ref.uri).name for stage, ref in given.items()} == {
        "sample": "samples",
        "ingest": "store",
        "split": "split",
    }
    assert (config.store, others.keys(), others["ingest"].digest) == ("other", {"sample", "ingest"}, other.digest)


def test_evaluate_refuses_what_is_no_samples(asked: Asked, checkpoint: Ref) -> None:
    found = call("evaluate", checkpoint.uri)
    assert found.exit_code == 1
    assert "evaluate needs samples, got a checkpoint" in found.stderr
    assert asked == []


def test_settings_on_the_command_line_are_nested_and_typed() -> None:
    given = [
        "recipe.local.lr=1e-4",
        "recipe.local.process.name=flow",
        "recipe.local.steps=7",
        "gates.below_start=[global]",
    ]
    assert overrides(given) == {
        "recipe": {"local": {"lr": "1e-4", "process": {"name": "flow"}, "steps": 7}},
        "gates": {"below_start": ["global"]},
    }
    assert load_config("tiny", overrides(given)).recipe["local"].lr == 1e-4
    assert overrides(None) == {}
    with pytest.raises(ConfigError, match="must read KEY=VALUE"):
        overrides(["=1"])


def test_no_setting_on_the_command_line_is_lost_to_the_order() -> None:
    """Settings of a process named before the process itself."""
    given = ["recipe.local.process.prediction=image", "recipe.local.process.name=cosine"]
    for order in (given, given[::-1]):
        assert load_config("tiny", overrides(order)).recipe["local"].process.prediction == "image"
    given = ["recipe.local.process.prediction=image", "recipe.local.process.name=flow"]
    for order in (given, given[::-1]):
        with pytest.raises(ConfigError, match=r"Flow matching has .* got 1\.0, 1000, 'image'"):
            load_config("tiny", overrides(order))
