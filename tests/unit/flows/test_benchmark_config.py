"""Rows of a benchmark by one protocol: what each becomes, and what is refused before anything runs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.benchmark import benchmark_of
from flows.benchmark_command import _text
from flows.benchmark_config import BenchmarkConfig, Entry, entries, load_benchmark
from flows.benchmark_run import BenchmarkRun, check, check_data
from flows.config import load_config
from flows.named_files import benchmark_files
from prdit_models.families import family
from storage.artifacts import Ref
from storage.errors import ComputationError, ConfigError, InputError, UserError
from tests.factories import make_data

ROW = {"title": "Mine", "configuration": "benchmark/tiny-prdit", "shares": {"local": 1, "global": 3}}
needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="the LDM's attention needs einops")


def mine(tmp_path: Path, **settings: Any) -> BenchmarkConfig:
    """A benchmark with one row; settings of the benchmark may be given."""
    values: dict[str, Any] = {
        "view": {"size": 32, "edge": 64},
        "ingest": {"spacing_mm": 4.0},
        "num_volumes": 4,
        "budget": {"steps": 100},
        "rows": {"mine": ROW},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values | settings))
    return load_benchmark(str(path))


def of_rows(name: str, *left_out: str) -> dict[str, Entry]:
    """The entries of the first seed by row."""
    config = load_benchmark(name, {"rows": dict.fromkeys(left_out), "seeds": [1]})
    return {entry.name: entry for entry in entries(config)}


def test_the_protocol_is_the_same_for_every_row_and_seed() -> None:
    config = load_benchmark("benchmark/tiny", {"rows": {"ldm": None}})
    found = entries(config)
    assert len(found) == 3 * len(config.rows)
    assert [entry.seed for entry in found[: len(config.rows)]] == [1] * len(config.rows)  # a whole table is there early
    for entry in found:
        for each in entry.configs.values():
            assert (each.sample.num_volumes, each.sample.seed) == (40, entry.seed)
            assert (each.ingest, each.split, each.evaluate) == (config.ingest, config.split, config.evaluate)
            assert {training.seed for training in each.trainings.values()} == {entry.seed}
            assert {training.select for training in each.trainings.values()} == {"last"}
            last = list(each.checkpoints().values())[-1]
            assert (last.view.size, last.view.edge, last.window.lower_hu) == (32, 64, -1000.0)


@pytest.mark.parametrize(("budget", "shares"), [({"steps": 100}, (25, 75)), ({"seconds": 60}, (15.0, 45.0))])
def test_the_trainings_of_a_row_share_its_budget(
    tmp_path: Path, budget: dict[str, float], shares: tuple[float, float]
) -> None:
    [config] = {id(entry.config): entry.config for entry in entries(mine(tmp_path, budget=budget, seeds=[1]))}.values()
    key = next(iter(budget))
    assert tuple(getattr(training, key) for training in config.trainings.values()) == shares
    by_steps = key == "steps"
    assert all((training.seconds is None) == by_steps for training in config.trainings.values())
    assert all(by_steps or training.steps > 10**8 for training in config.trainings.values())


def test_steps_take_the_place_of_seconds() -> None:
    assert load_benchmark("benchmark/tiny", {"budget": {"steps": 5}}).budget.model_dump() == {
        "steps": 5,
        "seconds": None,
    }


def test_a_cascade_ends_at_the_protocols_size() -> None:
    row = of_rows("benchmark/tiny", "ldm")["prdit-cascade"]
    sizes = {name: info.view.size for name, info in row.config.checkpoints().items()}
    assert sizes == {"local": 16, "global": 16, "refiner": 32}


def test_a_row_of_anothers_configuration_file_is_a_row(tmp_path: Path) -> None:
    own = load_config("benchmark/tiny-prdit").model_dump(mode="json", include={"recipe"})
    own["recipe"]["local"] |= {"batch_size": 3}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
    config = mine(tmp_path, rows={"theirs": {"title": "Theirs", "configuration": str(tmp_path / "own.yaml")}})
    assert entries(config)[0].config.recipe["local"].batch_size == 3
    assert config.digest() != mine(tmp_path).digest()


def test_titles_and_places_do_not_change_the_digest(tmp_path: Path) -> None:
    other = mine(tmp_path, title="Another", store="/elsewhere", rows={"mine": ROW | {"title": "Renamed"}})
    assert other.digest() == mine(tmp_path).digest()
    assert mine(tmp_path, num_volumes=5).digest() != other.digest()


def test_a_title_is_shown_as_it_is(tmp_path: Path) -> None:
    assert _text(mine(tmp_path, title="[/x] [b]Mine"), [], {}).startswith("[/x] [b]Mine: 0 rows x 3 seeds")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": {"seconds": 0}}, "budget.seconds: Input should be greater than 0"),
        ({"budget": {"steps": 0}}, "budget.steps: Input should be greater than 0"),
        ({"budget": {}}, "neither steps nor seconds"),
        ({"budget": {"steps": 1, "seconds": 1}}, "both steps and seconds"),
        ({"budget": {"steps": 1}}, "row 'mine': budget.steps is 1 for 2 trainings"),
        ({"seeds": [1, 1]}, "the same seed is the same result"),
        ({"seeds": [2**63]}, "seeds.0: Input should be less than 9223372036854775808"),
        ({"rows": {"mine": ROW, "twin": ROW}}, "rows: titles tell rows apart, and mine and twin are both 'Mine'"),
        ({"rows": {"mine": ROW | {"title": "a\nb"}}}, "rows.mine.title: String should match"),
        (
            {"rows": {"mine": ROW | {"paper": "PRDiT-4"}}},
            "the paper's tables have no 'PRDiT-4'; their rows are HA-GAN; ",
        ),
        ({"num_volumes": 1}, "num_volumes: Input should be greater than or equal to 2"),
        ({"view": {"size": 20, "edge": 60}}, "row 'mine': .*volume_size 20 is not divisible by stride 8"),
        ({"snapshot": "1", "phantoms": 4}, "give one of them"),
        ({"colour": 1}, "colour: unknown key"),
        ({"rows": {"mine": ROW | {"shares": {"local": 1}}}}, "row 'mine': shares leaves out global"),
        ({"rows": {"mine": ROW | {"shares": {"locale": 1}}}}, "row 'mine': shares names locale"),
        ({"rows": {"mine": ROW | {"configuration": "nothing"}}}, "row 'mine': .*base 'nothing' is not a configuration"),
        (
            {"rows": {"mine": ROW | {"overrides": {"evaluate": {"seed": 1}, "recipe": {"local": {"steps": 5}}}}}},
            "overrides set evaluate, recipe.local.steps, which the protocol sets",
        ),
        (
            {"rows": {"mine": ROW | {"overrides": {"runner": {}, "sample": {"num_volumes": 9, "num_steps": 9}}}}},
            "overrides set runner, sample.num_volumes, which the protocol sets",
        ),
        (
            {"rows": {"mine": ROW | {"overrides": {"recipe": [1]}}}},
            "row 'mine': .*recipe: expected a mapping, such as",
        ),
        ({"rows": {"mine": ROW | {"samplers": {"a b": {}}}}}, "rows.mine.samplers.a b: not a name; use lower-case"),
        ({"rows": {"mine": ROW | {"samplers": {"few": {"num_volumes": 9}}}}}, "samplers.few sets num_volumes"),
        ({"rows": {"mine": ROW | {"samplers": {"few": {"num_step": 9}}}}}, "sample.num_step: unknown key"),
        ({"rows": {"mine": ROW | {"samplers": {"few": {"sampler": "ddim"}}}}}, "row 'mine': .*'ddim'"),
    ],
)
def test_what_cannot_be_run_is_named_before_anything_runs(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        check(found := mine(tmp_path, **settings), entries(found), counted=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_some_rows_of_a_benchmark_run_as_in_the_whole() -> None:
    whole = load_benchmark("benchmark/tiny", {"rows": {"ldm": None}})
    some = whole.with_rows("wdm, hagan")
    assert list(some.rows) == ["hagan", "wdm"]
    configs = {str(entry): entry.config for entry in entries(whole)}
    assert all(entry.config == configs[str(entry)] for entry in entries(some))
    assert whole.with_rows(" ") == whole
    with pytest.raises(ConfigError, match="only names wdm3d; the benchmark has prdit, "):
        whole.with_rows("wdm,wdm3d")


def test_rows_and_samplers_that_are_null_are_left_out() -> None:
    changed = {"prdit": {"samplers": {"many": None, "more": {"num_steps": 5}}}, "wdm": None, "ldm": None}
    found = load_benchmark("benchmark/tiny", {"rows": changed})
    assert list(found.rows["prdit"].samplers) == ["few", "more"]
    assert "wdm" not in found.rows
    with pytest.raises(ConfigError, match="samplers: Dictionary should have at least 1 item"):
        load_benchmark("benchmark/tiny", {"rows": {"hagan": {"samplers": {"published": None}}}})


def test_a_row_that_fails_is_noted_and_a_stop_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = mine(tmp_path)
    [entry, *_] = entries(config)
    nothing: Any = None
    run = BenchmarkRun(config, [entry], {}, nothing, "parent", {})
    raised: list[BaseException] = [ComputationError("no volume is finite"), KeyboardInterrupt()]

    def line(*_: Any) -> Any:
        raise raised.pop(0)

    monkeypatch.setattr(BenchmarkRun, "_line", line)
    run.row(entry, {}, {})
    assert (run.failed, run.results) == ({("mine", "published", 1): "ComputationError"}, {})
    with pytest.raises(KeyboardInterrupt):
        run.row(entry, {}, {})


def test_an_unknown_benchmark_is_told_which_there_are() -> None:
    with pytest.raises(
        ConfigError, match="'benchmark/none' is not a benchmark of prdit; there are benchmark/cascade, "
    ):
        benchmark_of("benchmark/none")


def test_a_family_without_its_package_is_refused_with_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any, **__: Any) -> Any:
        raise ImportError("monai is missing: pip install 'prdit[baselines]'")

    config = mine(tmp_path)
    found = entries(config)
    monkeypatch.setattr(type(family.FAMILIES["local"]), "build", build)
    with pytest.raises(InputError, match=r"row 'mine': recipe.local \(family 'local'\): monai is missing: pip install"):
        check(config, found, counted=False)


def test_a_snapshot_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    found = entries(mine(tmp_path, rows={"mine": ROW | {"overrides": {"recipe": {"local": {"batch_size": 8}}}}}))
    _, split = make_data(tmp_path / "data", num_volumes=5)
    with pytest.raises(
        InputError, match=r"row 'mine': recipe\.local takes 8 volumes per step, and the split has 4 to train on"
    ):
        check_data(found, split)
    _, nothing_held_out = make_data(tmp_path / "more", num_volumes=1)
    with pytest.raises(InputError, match="0 volumes to train on and 1 held out"):
        check_data(found, nothing_held_out)
    _, enough = make_data(tmp_path / "enough", num_volumes=9)
    check_data(found, enough)
    assert isinstance(enough, Ref)


PUBLISHED = {
    ("benchmark/lidc-128", "hagan"): {"hagan": 79_583_972},
    ("benchmark/lidc-256", "hagan"): {"hagan": 79_744_884},
    ("benchmark/lidc-128", "wdm"): {"wdm": 57_914_824},
    ("benchmark/lidc-256", "wdm"): {"wdm": 83_158_728},
    ("benchmark/lidc-128", "prdit"): {"local": 39_156_160, "global": 93_228_992},
    ("benchmark/lidc-256", "prdit-cascade"): {"local": 39_156_160, "global": 93_228_992, "refiner": 132_385_152},
}


@pytest.mark.parametrize("name", list(benchmark_files()))
def test_every_benchmark_of_ours_can_be_run(name: str) -> None:
    found = of_rows(name, "ldm")
    config = load_benchmark(name, {"rows": {"ldm": None}, "seeds": [1]})
    sizes = check(config, list(found.values()), counted=False)
    for (of, row), parameters in PUBLISHED.items():
        if of == name:
            assert {each.name: each.parameters for each in sizes[row].trainings} == parameters
    for row, size in sizes.items():
        assert all(size.sampling[sampler] for sampler in found[row].configs)
    if "hagan" in sizes:  # what settings decide is said, too
        assert any("every fourth slice" in sentence for sentence in sizes["hagan"].deviations)


@needs_einops
@pytest.mark.parametrize(("name", "autoencoder"), [("benchmark/lidc-128", 20_986_289), ("benchmark/tiny", 189_337)])
def test_latent_diffusion_has_its_sizes(name: str, autoencoder: int) -> None:
    config = load_benchmark(name, {"seeds": [1]})
    [entry] = [each for each in entries(config) if each.name == "ldm"]
    size = check(config, [entry], counted=False)["ldm"]
    assert size.trainings[0].parameters >= autoencoder  # with its critic
    assert size.deviations
