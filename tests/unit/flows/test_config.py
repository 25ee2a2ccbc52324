"""The one configuration: unknown keys, impossible pairs, and every leaf either in a stage's key or named as run-time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from flows.config import RUNTIME, ConfigError, PipelineConfig, config_names, from_parameters, load_config
from tasks.run.config import StageConfig

STAGE_FIELDS = ("ingest", "split", "train_local", "train_global", "train_refiner", "sample", "evaluate")


def leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        inner = next((kind for kind in (field.annotation, *get_args(field.annotation)) if _is_model(kind)), None)
        if inner is not None:
            yield from leaves(inner, (*prefix, name))
        else:
            yield (*prefix, name)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def replaced(model: Any, path: tuple[str, ...]) -> Any:
    """The model with another value at a dotted place (unchecked: only what enters the key matters here)."""
    value = replaced(getattr(model, path[0]), path[1:]) if len(path) > 1 else "another value"
    return model.model_copy(update={path[0]: value})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("stage", STAGE_FIELDS)
def test_every_leaf_changes_its_stages_key_or_is_named_runtime(stage: str) -> None:
    base = load_config("small")
    config: StageConfig = getattr(base, stage)
    found = list(leaves(type(config)))
    assert found
    for path in found:
        same_key = replaced(config, path).key_fields() == config.key_fields()
        assert same_key == (path[0] in config.RUNTIME), f"{stage}.{'.'.join(path)}"


def test_the_other_keys_are_named_runtime() -> None:
    assert set(PipelineConfig.model_fields) == RUNTIME | set(STAGE_FIELDS)


@pytest.mark.parametrize("name", config_names())
def test_named_configurations_are_whole(name: str) -> None:
    assert load_config(name).base == name


def test_unknown_key_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: small\ntrain_local:\n  learning_rate: 1\n")
    with pytest.raises(ConfigError, match=r"train_local\.learning_rate: unknown key.*Known here:.*\blr\b"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train_local": {"preset": "XS/12/0", "view": {"size": 20, "edge": 240}}}, "20"),
        ({"train_local": {"preset": "XXL/12/0"}}, "XXL"),
        ({"train_local": {"preset": "XS/12/4"}}, "depth 0"),
        ({"train_global": {"preset": "S/12/4"}}, "size letter and patch"),
        ({"train_local": {"view": {"size": 48}}}, "does not divide"),
        ({"train_local": {"lr": -1}}, "train_local.lr"),
        ({"train_local": {"noise_std": 1.0}}, "noise_std"),
    ],
)
def test_impossible_settings_are_refused_by_name(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("small", overrides)


def test_unknown_configuration_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'nothing'.*demo.*small"):
        load_config("nothing")


@pytest.mark.parametrize("given", [{"configuration": ""}, {"configuration": "demo", "overrides": {"workdir": ""}}])
def test_empty_text_is_no_configuration(given: dict[str, Any]) -> None:
    """An empty name must not mean the defaults of every field, which are the published training's."""
    with pytest.raises(ConfigError, match=r"base '' is not a configuration|workdir: String should have at least 1"):
        from_parameters(**given)


def test_base_and_overrides_merge_key_by_key() -> None:
    config = PipelineConfig.model_validate({"base": "small", "train_local": {"steps": 7}})
    small = load_config("small")
    assert config.train_local == small.train_local.model_copy(update={"steps": 7})
    assert config.train_global == small.train_global


def test_the_digest_is_the_same_wherever_and_however_fast_a_run_works() -> None:
    small = load_config("small")
    where = {"store": "/x", "workdir": "/y", "source": "/z", "experiment": "e", "train_local": {"device": "cpu"}}
    assert load_config("small", where).digest() == small.digest()
    assert load_config("small", where).tags() == small.tags()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("part", [*STAGE_FIELDS, "gates"])
def test_the_digest_changes_with_every_leaf_that_changes_results(part: str) -> None:
    small = load_config("small", {"train_refiner": {"enabled": True}})
    for path in set(leaves(type(getattr(small, part)))) - {("enabled",)}:
        same = replaced(small, (part, *path)).digest() == small.digest()
        assert same == (path[0] in getattr(small, part).RUNTIME), f"{part}.{'.'.join(path)}"


def test_stage_3_counts_where_it_is_enabled() -> None:
    def digest(**refiner: Any) -> str:
        return load_config("small", {"train_refiner": refiner}).digest()

    assert digest(enabled=False, steps=7) == digest()
    assert len({digest(), digest(enabled=True), digest(enabled=True, steps=7)}) == 3
    tags = load_config("small", {"train_refiner": {"enabled": True, "steps": 7}}).tags()
    assert tags["prdit.config_overrides"] == "train_refiner.enabled, train_refiner.steps"


def test_tags_name_the_keys_that_differ_from_the_named_configuration() -> None:
    config = load_config(
        "demo",
        {"store": "/x", "train_local": {"steps": 7, "view": {"size": 16}}, "gates": {"global_below_local": True}},
    )
    assert config.tags() == {
        "prdit.config": "demo+overrides",
        "prdit.config_overrides": "gates.global_below_local, train_local.steps, train_local.view.size",
        "prdit.config_digest": config.digest(),
    }
    assert PipelineConfig().tags()["prdit.config"] == "custom"


def test_an_override_that_repeats_the_configuration_is_none() -> None:
    steps = load_config("demo").train_local.steps
    assert load_config("demo", {"train_local": {"steps": steps}}).tags()["prdit.config"] == "demo"


def test_stages_of_a_run() -> None:
    assert load_config("tiny", {"source": "/x"}).stages("train-local") == ("ingest", "split", "train-local")
    through = ("split", "train-local", "train-global", "sample", "evaluate")
    assert load_config("tiny").stages("evaluate") == through
    refined = load_config("tiny", {"train_refiner": {"enabled": True}})
    assert refined.stages("evaluate") == (*through[:3], "train-refiner", *through[3:])


def test_a_dumped_configuration_loads_to_itself(tmp_path: Path) -> None:
    import yaml

    config = load_config("demo", {"source": "/data/ct", "sample": {"num_volumes": 3}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(str(path)) == config


@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_numbers_that_are_not_finite_are_refused_by_key(tmp_path: Path, value: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: small\ntrain_refiner:\n  low_frequency_weight: {value}\n")
    with pytest.raises(ConfigError, match=r"train_refiner\.low_frequency_weight: .*finite"):
        load_config(str(path))


def test_shifts_between_the_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train_local\.max_shift: .*multiple of 4, got 3"):
        load_config("small", {"train_local": {"max_shift": 3}})


@pytest.mark.parametrize(("given", "text"), [(True, "True"), (120.0, "120.0"), (3, "3"), ("B", "B")])
def test_labels_are_text_whatever_yaml_makes_of_them(given: object, text: str) -> None:
    assert load_config("small", {"sample": {"label": given}}).sample.label == text


def test_an_empty_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="label is empty"):
        load_config("small", {"sample": {"label": " "}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sample": {"label": "B"}}, "label_column is not set"),
        ({"sample": {"label": "B"}, "train_refiner": {"enabled": True}}, "stage 2 only"),
        (
            {
                "sample": {"label": "B", "guidance_scale": 2.0},
                "train_global": {"label_column": "KVP", "label_dropout": 0.0},
            },
            "label_dropout 0",
        ),
    ],
)
def test_a_label_that_sampling_cannot_use_is_refused_before_training(overrides: dict[str, Any], message: str) -> None:
    from flows.pipeline import check_labels

    with pytest.raises(ValueError, match=message):
        check_labels(load_config("small", overrides))
