"""The table of stages: its order, who takes what from whom, and what has to run for a stage."""

from pathlib import Path
from typing import Any

import pytest

from flows import console
from flows import stages as module
from flows.config import PipelineConfig, config_names, load_config, load_named
from flows.pipeline import PipelineRun
from flows.stages import Row, needed, rows, stage_names, training_row, walk
from storage.artifacts import Ref
from storage.errors import ConfigError, InputError
from storage.snapshots import withdraw
from storage.volume_store import VolumeStore
from tasks.run.stage import RunContext, StageOutcome
from tests.factories import list_volumes, make_split, make_store

REFINED = {"recipe": {"refiner": {"enabled": True}}}
GIVEN = Ref(kind="snapshot", uri="/given", digest="sha256:0")


def test_the_stages_of_a_configuration_and_their_inputs() -> None:
    table = rows(load_config("tiny", REFINED))
    assert {name: row.inputs for name, row in table.items()} == {
        "ingest": {},
        "split": {"snapshot": "ingest"},
        "train-local": {"snapshot": "ingest", "split": "split"},
        "train-global": {"snapshot": "ingest", "split": "split", "start": "train-local"},
        "train-refiner": {"snapshot": "ingest", "split": "split", "start": "train-global"},
        "sample": {"checkpoint": "train-refiner"},
        "evaluate": {"samples": "sample", "snapshot": "ingest", "split": "split"},
    }
    assert list(table) == [
        "ingest",
        "split",
        "train-local",
        "train-global",
        "train-refiner",
        "sample",
        "evaluate",
    ]
    assert all(row.name == name for name, row in table.items())


def test_a_training_that_is_off_is_no_stage_and_the_last_one_is_sampled() -> None:
    table = rows(load_config("tiny"))
    assert "train-refiner" not in table
    assert table["sample"].inputs == {"checkpoint": "train-global"}


@pytest.mark.parametrize("name", config_names())
def test_inputs_come_from_stages_before(name: str) -> None:
    table = rows(load_config(name))
    before: set[str] = set()
    for row in table.values():
        assert set(row.inputs.values()) <= before, row.name
        before.add(row.name)


def test_a_stages_settings_are_those_of_its_configuration() -> None:
    config = load_config("tiny", REFINED)
    table = rows(config)
    for name in ("ingest", "split", "sample", "evaluate"):
        assert table[name].config is getattr(config, name)
    for name, training in config.recipe.items():
        assert table[training_row(name)].config is training


# -- what has to run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "given", "expected"),
    [
        ("ingest", (), ("ingest",)),
        ("train-local", (), ("ingest", "split", "train-local")),
        ("train-local", ("ingest",), ("split", "train-local")),
        ("train-global", ("ingest", "split"), ("train-local", "train-global")),
        ("train-global", ("ingest", "train-local"), ("split", "train-global")),
        ("sample", ("train-global",), ("sample",)),
        ("evaluate", ("ingest", "split", "sample"), ("evaluate",)),
        ("evaluate", ("ingest", "sample"), ("split", "evaluate")),
        ("evaluate", ("ingest",), ("split", "train-local", "train-global", "sample", "evaluate")),
        ("evaluate", ("train-global",), ("ingest", "split", "sample", "evaluate")),
        ("sample", ("sample",), ()),
    ],
)
def test_what_a_stage_needs(last: str, given: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert needed(rows(load_config("tiny")), last, dict.fromkeys(given, GIVEN)) == expected


def test_the_refiner_needs_what_it_starts_from() -> None:
    table = rows(load_config("tiny", REFINED))
    chain = ("split", "train-local", "train-global", "train-refiner")
    assert needed(table, "train-refiner", {"ingest": GIVEN}) == chain
    assert needed(table, "evaluate", {"ingest": GIVEN}) == (*chain, "sample", "evaluate")


def test_a_training_that_another_does_not_start_from_is_not_needed() -> None:
    another = {"family": "local", "steps": 1, "lr": 1e-3, "settings": {"preset": "XS/4/0"}}
    table = rows(load_config("tiny", {"recipe": {"another": another}}))
    assert needed(table, "train-another", {}) == ("ingest", "split", "train-another")
    assert "train-local" not in needed(table, "sample", {})  # the last training is sampled, and is trained from scratch


def test_an_unknown_stage_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"stage 'train-refiner' is not a stage of .* has ingest, split, train-local, .*evaluate"
    ):
        needed(rows(load_config("tiny")), "train-refiner", {})


def test_the_names_of_all_stages() -> None:
    assert stage_names() == (
        "ingest",
        "split",
        "train-local",
        "train-global",
        "train-refiner",
        "sample",
        "evaluate",
    )


def test_the_names_of_stages_follow_the_configurations(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another package's training is a stage like prdit's own; one that cannot be read does not stop the others."""

    def named(name: str) -> dict[str, Any]:
        if name == "broken":
            raise ConfigError("base 'nothing' is not a configuration")
        return {"recipe": {"toy": {}}} if name == "toy" else load_named(name)

    monkeypatch.setattr(module, "config_names", lambda: ["tiny", "broken", "toy"])
    monkeypatch.setattr(module, "load_named", named)
    assert stage_names()[2:-2] == ("train-local", "train-global", "train-refiner", "train-toy")
    assert "the configuration 'broken' is left out: base 'nothing'" in caplog.text


def test_a_training_may_be_called_like_another_input() -> None:
    local = load_config("tiny").model_dump(mode="json")["recipe"]["local"]
    above = {**load_config("tiny").model_dump(mode="json")["recipe"]["global"], "start": "split"}
    config = load_config(
        "tiny", {"recipe": {"local": None, "global": None, "refiner": None, "split": local, "top": above}}
    )
    assert list(config.recipe) == ["split", "top"]  # null takes a training of the base out
    table = rows(config)
    assert table["train-top"].inputs == {"snapshot": "ingest", "split": "split", "start": "train-split"}


# -- who runs the table -----------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """What was run instead of the stages: name, digests of the inputs by role, tags; a stage's digest is its name."""
    calls: list[tuple[str, dict[str, str], dict[str, str]]] = []

    def table(config: PipelineConfig, initial: Any = None) -> dict[str, Row]:
        def stand_in(name: str) -> Any:
            def run(inputs: Any, context: RunContext, progress: Any) -> StageOutcome:
                calls.append((name, {role: ref.digest for role, ref in inputs.items()}, context.tags))
                ref = Ref(kind="checkpoint", uri=f"/{name}", digest=f"sha256:{name}")
                return StageOutcome(ref=ref, cached=False, seconds=0.0, mlflow_run_id="")

            return run

        return {name: Row(name, row.what, row.inputs, row.config, stand_in(name)) for name, row in rows(config).items()}

    monkeypatch.setattr("flows.stages.rows", table)
    monkeypatch.setattr("flows.pipeline.rows", table)
    monkeypatch.setattr("flows.pipeline.run_as_task", lambda name, work, source: work(lambda done, total: None))
    return calls


def test_the_flow_hands_references_from_stage_to_stage(tmp_path: Path, ran: list[Any]) -> None:
    config = load_config("tiny", {"source": "/data/ct"})
    run = PipelineRun(config, RunContext(workdir=tmp_path, tags={"mine": "1"}))
    run.through("train-global")
    assert [(name, inputs) for name, inputs, _ in ran] == [
        ("ingest", {}),
        ("split", {"snapshot": "sha256:ingest"}),
        ("train-local", {"snapshot": "sha256:ingest", "split": "sha256:split"}),
        (
            "train-global",
            {"snapshot": "sha256:ingest", "split": "sha256:split", "start": "sha256:train-local"},
        ),
    ]
    assert list(run.outcomes) == [name for name, _, _ in ran]
    assert [tags for _, _, tags in ran] == [{"mine": "1"}] + [{"mine": "1", "prdit.snapshot": "sha256:ingest"}] * 3


def test_without_a_source_the_flow_takes_a_snapshot(tmp_path: Path, ran: list[Any]) -> None:
    store = make_store(tmp_path / "store", spacing_mm=4.0)
    grid = {"num_levels": 1, "interpolation": "linear"}
    config = load_config("tiny", {"store": str(tmp_path / "store"), "ingest": grid})
    PipelineRun(config, RunContext(workdir=tmp_path)).through("train-local")
    assert [(name, inputs) for name, inputs, _ in ran] == [
        ("split", {"snapshot": store.digest}),
        ("train-local", {"snapshot": store.digest, "split": "sha256:split"}),
    ]
    assert {tags["prdit.snapshot"] for _, _, tags in ran} == {store.digest}


def test_a_run_can_work_on_an_earlier_snapshot(tmp_path: Path, ran: list[Any]) -> None:
    first = make_store(tmp_path / "store", spacing_mm=4.0)
    withdraw(VolumeStore.open(first.path), ["v0"])
    grid = {"num_levels": 1, "interpolation": "linear"}
    values = {"store": str(tmp_path / "store"), "ingest": grid}
    for snapshot in ("1", 1, first.digest, first.digest.removeprefix("sha256:")[:8]):
        ran.clear()
        config = load_config("tiny", values | {"snapshot": snapshot})
        PipelineRun(config, RunContext(workdir=tmp_path)).through("split")
        assert [inputs for _, inputs, _ in ran] == [{"snapshot": first.digest}]
    with pytest.raises(InputError, match=r"Snapshot '7'.*prdit ls"):
        PipelineRun(load_config("tiny", values | {"snapshot": "7"}), RunContext(workdir=tmp_path)).through("split")
    with pytest.raises(ConfigError, match="leave source out"):
        load_config("tiny", values | {"snapshot": "1", "source": "/data/ct"})


def test_a_command_runs_what_is_not_given(tmp_path: Path, ran: list[Any]) -> None:
    store = make_store(tmp_path / "store", spacing_mm=4.0)
    grid = {"num_levels": 1, "interpolation": "linear"}
    config = load_config("tiny", {"store": str(tmp_path / "store"), "workdir": str(tmp_path / "work"), "ingest": grid})
    below = Ref(kind="checkpoint", uri="/mine", digest="sha256:mine")
    outcome = console.run_stages(config, "train-global", {"train-local": below})
    assert [(name, inputs) for name, inputs, _ in ran] == [
        ("split", {"snapshot": store.digest}),
        ("train-global", {"snapshot": store.digest, "split": "sha256:split", "start": "sha256:mine"}),
    ]
    assert outcome.ref.digest == "sha256:train-global"
    ran.clear()
    console.run_stages(config, "sample", {"train-global": below})  # no store is looked for
    assert [(name, inputs) for name, inputs, _ in ran] == [("sample", {"checkpoint": "sha256:mine"})]


@pytest.mark.parametrize(
    ("above", "sample", "message"),
    [
        (
            {"conditions": ["age"]},
            {},
            r"recipe\.global: conditions names age, which is no column .* it has dose, grade,",
        ),
        ({"conditions": ["dose"]}, {}, r"recipe\.global: conditions names dose, which is 2 for all training volumes"),
        (
            {"label_column": "age"},
            {},
            r"recipe\.global: label_column 'age' is not a column of the snapshot; it has dose",
        ),
        (
            {"conditions": ["grade"]},
            {"conditions": {"grade": "C"}},
            r"sample\.conditions\.grade is 'C'.* it knows grade: A, B",
        ),
        ({"label_column": "grade"}, {"label": "C"}, r"sample\.label 'C' is not a label .* it knows grade: A, B"),
        ({}, {"mask_volume": "v9"}, r"'v9' \(sample\.mask_volume\) is not one of the 3 volumes"),
    ],
)
def test_what_snapshot_and_split_refuse_is_refused_before_anything_is_trained(
    tmp_path: Path, above: dict[str, Any], sample: dict[str, Any], message: str
) -> None:
    make_store(tmp_path / "store")
    volumes = VolumeStore.open(tmp_path / "store")
    labels = {"v0": {"dose": "2", "grade": "A"}, "v1": {"dose": "2", "grade": "B"}, "v2": {"dose": "3", "grade": "C"}}
    snapshot = list_volumes(volumes, {f"v{index}": f"p{index}" for index in range(3)}, labels)
    split = make_split(tmp_path / "split", snapshot, ["v0", "v1"], ["v2"])
    ran: list[str] = []

    def run(row: Row, inputs: Any) -> StageOutcome:
        ran.append(row.name)
        ref = split if row.name == "split" else GIVEN
        return StageOutcome(ref=ref, cached=False, seconds=0.0, mlflow_run_id="")

    table = rows(load_config("tiny", {"recipe": {"global": above}, "sample": sample}))
    with pytest.raises(InputError, match=message):
        list(walk(table, "evaluate", {"ingest": snapshot}, run))
    assert ran == ["split"]
    list(walk(table, "train-local", {"ingest": snapshot}, run))  # what is not run is not checked
    given = {"ingest": snapshot, "split": split}
    list(walk(table, "train-global", {**given, "train-local": GIVEN}, run))  # checks itself
    list(walk(table, "sample", {**given, "train-global": GIVEN}, run))  # so does this
    assert ran == ["split", "split", "train-local", "train-global", "sample"]


def test_what_snapshot_and_split_have_is_trained_and_sampled(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    volumes = VolumeStore.open(tmp_path / "store")
    labels = {"v0": {"dose": "2", "grade": "A"}, "v1": {"dose": "3", "grade": "B"}}
    snapshot = list_volumes(volumes, {f"v{index}": f"p{index}" for index in range(3)}, labels)
    split = make_split(tmp_path / "split", snapshot, ["v0", "v1"], ["v2"])
    above = {"conditions": ["dose"], "label_column": "grade"}
    sample = {"conditions": {"dose": 2}, "label": "B", "mask_volume": "v2"}
    table = rows(load_config("tiny", {"recipe": {"global": above}, "sample": sample}))

    def run(row: Row, inputs: Any) -> StageOutcome:
        return StageOutcome(ref=GIVEN, cached=False, seconds=0.0, mlflow_run_id="")

    done = [name for name, _ in walk(table, "sample", {"ingest": snapshot, "split": split}, run)]
    assert done == ["train-local", "train-global", "sample"]


def test_the_weights_that_a_training_begins_with_reach_it_alone() -> None:
    champion = Ref(kind="checkpoint", uri="/champion", digest="sha256:champion")
    table = rows(load_config("tiny"), {"global": champion})
    given: dict[str, dict[str, str]] = {}

    def run(row: Row, inputs: Any) -> StageOutcome:
        given[row.name] = {role: ref.digest for role, ref in inputs.items()}
        ref = Ref(kind="checkpoint", uri=f"/{row.name}", digest=f"sha256:{row.name}")
        return StageOutcome(ref=ref, cached=False, seconds=0.0, mlflow_run_id="")

    for _ in walk(table, "sample", {}, run):
        pass
    assert given["train-global"]["initial"] == champion.digest
    assert [name for name, inputs in given.items() if "initial" in inputs] == ["train-global"]
    assert all("initial" not in row.inputs for row in table.values())
