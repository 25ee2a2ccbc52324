"""The one configuration: unknown keys, impossible pairs, and every leaf either in a stage's key or named as run-time."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from flows import named_files as module
from flows.config import (
    RUNTIME,
    PipelineConfig,
    as_parameters,
    config_names,
    from_parameters,
    load_config,
    merge,
)
from flows.pipeline import check_sampling
from flows.stages import rows
from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.ddpm import DDPMProcess
from prdit_models.diffusion.flow import FlowProcess
from storage.errors import ConfigError
from tasks.run.config import StageConfig
from tasks.run.launchers.config import LauncherConfig

STAGE_FIELDS = ("ingest", "split", "sample", "evaluate")
ONE = {"recipe": {"one": {"family": "local", "steps": 10, "lr": 1e-3}}}
# Every stage, with everything that a training may set.
WHOLE = load_config(
    "small",
    {"recipe": {"local": {"process": "cosine", "intensity": {"upper_hu": 600.0}}, "refiner": {"enabled": True}}},
)

# Another value of the settings that are more than one value.
OTHER: dict[tuple[str, ...], Any] = {("process",): FlowProcess(), ("metrics",): {"hu": None}}


def of(training: str, **settings: Any) -> dict[str, Any]:
    """An override of one training."""
    return {"recipe": {training: settings}}


def leaves(value: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Settings of a model, those of its own models and dataclasses one by one."""
    if isinstance(value, BaseModel):
        fields = {name: _kind(field.annotation) for name, field in type(value).model_fields.items()}
    else:
        fields = {field.name: None for field in dataclasses.fields(value)}
    for name, kind in fields.items():
        inner = getattr(value, name)
        if isinstance(inner, BaseModel) or dataclasses.is_dataclass(inner):
            yield from leaves(inner, (*prefix, name))
        elif inner is None and kind is not None:
            yield from leaves(kind(), (*prefix, name))
        else:
            yield (*prefix, name)


def _kind(annotation: Any) -> Any:
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def replaced(model: Any, path: tuple[str, ...], other: Any = "another value") -> Any:
    """The model with another value at a place (unchecked: only what enters the key matters here)."""
    found = copy.copy(model)
    name, rest = path[0], path[1:]
    if isinstance(model, dict):
        found[name] = replaced(model[name], rest, other)
        return found
    inner = getattr(model, name)
    if rest and inner is None:
        inner = _kind(type(model).model_fields[name].annotation)()
    value = replaced(inner, rest, other) if rest else other
    if isinstance(model, BaseModel):
        return model.model_copy(update={name: value})
    object.__setattr__(found, name, value)
    return found


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("stage", list(rows(WHOLE)))
def test_every_leaf_changes_its_stages_key_or_is_named_runtime(stage: str) -> None:
    config: StageConfig = rows(WHOLE)[stage].config
    found = list(leaves(config))
    assert found
    for path in found:
        other = OTHER.get(path, "another value")
        same_key = replaced(config, path, other).key_fields() == config.key_fields()
        assert same_key == (path[0] in config.RUNTIME), f"{stage}.{'.'.join(path)}"


def test_an_extractor_counts_by_name_and_settings_and_its_file_by_its_digest() -> None:
    def key(extractor: Any) -> dict[str, Any]:
        return load_config("small", {"evaluate": {"extractor": extractor}}).evaluate.key_fields()

    file = {"name": "file", "path": "a.pt", "sha256": "0" * 64}
    assert key(file) == key(file | {"path": "b.pt"})
    others: list[Any] = [
        "auto",
        "random",
        {"name": "random", "seed": 1},
        "astra",
        {"name": "astra", "size": [32, 32, 32]},
        file,
    ]
    others += [file | {"sha256": "1" * 64}, file | {"axes": "SRA"}, file | {"hu": [-1000, 200]}]
    assert len({str(key(other)) for other in others}) == len(others)
    assert key("random") == key({"name": "random"})


def test_an_extractor_of_another_name_leaves_the_settings_below() -> None:
    below = {"evaluate": {"extractor": {"name": "random", "seed": 3}}}
    assert merge(below, {"evaluate": {"extractor": "astra"}})["evaluate"]["extractor"] == {"name": "astra"}
    same = merge(below, {"evaluate": {"extractor": {"seed": 4}}})["evaluate"]["extractor"]
    assert same == {"name": "random", "seed": 4}


def test_leaves_of_trainings_are_those_of_family_process_view_and_intensity() -> None:
    """The walk above reaches what a training's nested settings hold."""
    local = {".".join(path) for path in leaves(WHOLE.recipe["local"])}
    assert {"settings.norm", "settings.logit_std", "process.noise_std", "view.edge", "intensity.mapping"} < local
    assert {"settings.qk_norm", "view.centre", "start_weights"} < {
        ".".join(path) for path in leaves(WHOLE.recipe["global"])
    }
    assert "settings.fine_tune_lr" in {".".join(path) for path in leaves(WHOLE.recipe["refiner"])}


@pytest.mark.parametrize("stage", list(rows(WHOLE)))
def test_what_is_named_runtime_is_a_setting(stage: str) -> None:
    config = rows(WHOLE)[stage].config
    assert set(type(config).model_fields) >= config.RUNTIME


def test_the_other_keys_are_named_runtime() -> None:
    assert set(PipelineConfig.model_fields) == RUNTIME | {*STAGE_FIELDS, "recipe"}


@pytest.mark.parametrize("name", config_names())
def test_named_configurations_are_whole(name: str) -> None:
    assert load_config(name).base == name


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (of("local", learning_rate=1), r"recipe\.local\.learning_rate: unknown key.*Known here:.*\blr\b.*\bview\b"),
        (
            of("local", settings={"qk_norm": True}),
            r"recipe\.local\.settings\.qk_norm: unknown key\. Known here: arithmetic, .*\bpreset\b",
        ),
        (
            of("global", settings={"arithmetic": "tf"}),
            r"recipe\.global\.settings\.arithmetic: unknown key\. Known here: joint_local, .*\bqk_norm\b",
        ),
        (
            of("local", process={"noise": 1.0}),
            r"recipe\.local\.process\.noise: unknown key\. Known here: noise_std, num_steps, prediction",
        ),
        (
            of("local", view={"edges": 1}),
            r"recipe\.local\.view\.edges: unknown key\. Known here: centre, edge, more_edges, size",
        ),
        ({"sample": {"steps": 1}}, r"sample\.steps: unknown key\. Known here:.*\bnum_steps\b"),
        ({"train_local": {"steps": 1}}, r"train_local: unknown key\. Known here:.*\brecipe\b"),
    ],
)
def test_unknown_keys_are_named_with_the_known_ones(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": "small", **overrides}))
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


def test_every_unknown_setting_is_listed() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("small", of("local", settings={"one": 1, "two": 2}))
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["  recipe.local.settings.one", "  recipe.local.settings.two"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (of("local", settings={"preset": "XS/12/0"}, view={"size": 20, "edge": 240}), "volume_size 20 is not divis"),
        (of("local", settings={"preset": "XXL/12/0"}), r"recipe\.local: Unknown preset 'XXL/12/0'"),
        (of("local", settings={"preset": "XS/12/4"}), "a local denoiser has depth 0"),
        (of("local", settings={"norm": "batch"}), r"settings\.norm: Input should be 'layer' or 'rms', got 'batch'"),
        (of("local", settings={"logit_std": 0.0}), r"recipe\.local\.settings: logit_std is 0\.0; expected above 0"),
        (of("local", settings=3), r"recipe\.local\.settings: expected a mapping with preset, .*; got 3"),
        (of("global", settings={"preset": "S/12/4"}), "size letter and patch"),
        (of("global", view={"size": 32}), r"recipe\.global: view cannot be set here: .* what 'local' saw"),
        (of("global", intensity={"upper_hu": 500}), r"recipe\.global: intensity cannot be set here"),
        (of("local", view={"size": 48}), r"recipe\.local\.view: .*does not divide"),
        (of("local", lr=-1), r"recipe\.local\.lr: .*greater than 0, got -1"),
        (of("local", max_shift=3), r"recipe\.local\.max_shift: .*multiple of 4, got 3"),
        (of("local", label_column="KVP"), r"recipe\.local: label_column is set; a local denoiser takes no labels"),
    ],
)
def test_impossible_settings_are_refused_by_name(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("small", overrides)


@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_numbers_that_are_not_finite_are_refused_by_key(tmp_path: Path, value: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: small\nrecipe:\n  refiner:\n    settings: {{low_frequency_weight: {value}}}\n")
    with pytest.raises(ConfigError, match=r"recipe\.refiner\.settings\.low_frequency_weight: .*finite"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (of("global", start="locale"), r"recipe\.global\.start is 'locale'; it must name an earlier training: local$"),
        (of("local", enabled=False), r"start is 'local', which is not enabled; .* training: there is none"),
        (of("global", start="refiner"), r"recipe\.global\.start is 'refiner', which is not enabled"),
        (
            {"recipe": {"global": {"start": "refiner"}, "refiner": {"enabled": True}}},
            r"recipe\.global\.start is 'refiner', which comes later; it must name an earlier training: local$",
        ),
        (of("global", start=None), r"recipe\.global: start is not set; family 'global' starts from a local denoiser"),
        (of("local", start="global"), r"recipe\.local: start is 'global', but family 'local' is trained from scratch"),
        (
            of("refiner", enabled=True, start="local"),
            r"recipe\.refiner: family 'refiner' starts from a denoiser, got a local denoiser",
        ),
        (of("local", family="unet"), r"recipe\.local: Unknown family 'unet'; there are local, global, refiner"),
        (of("another", lr=1e-3), r"recipe\.another\.family: not given, and it has no default\n.*another\.steps: not"),
        (of("Local", family="local", steps=1, lr=1e-3), r"recipe\.Local: not a name"),
        (
            {"recipe": {"local": {"enabled": False}, "global": {"enabled": False}}},
            "recipe has no training that is enabled",
        ),
    ],
)
def test_a_recipe_that_does_not_join_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("small", overrides)


def test_a_training_can_be_added_to_a_recipe() -> None:
    """A second refiner, one level above the first: what counts is what it starts from, not its name."""
    finer = {"family": "refiner", "start": "refiner", "steps": 10, "lr": 1e-3}
    config = load_config("small", {"recipe": {"refiner": {"enabled": True}, "finer": finer}})
    assert list(config.trainings) == ["local", "global", "refiner", "finer"]
    made = config.checkpoints()
    assert [(name, info.view.size) for name, info in made.items()] == [
        ("local", 32),
        ("global", 32),
        ("refiner", 64),
        ("finer", 128),
    ]
    assert made["finer"].model["base"] == made["refiner"].model
    with pytest.raises(ConfigError, match=r"recipe\.finer\.start is 'refiner', which is not enabled"):
        load_config("small", of("finer", **finer))


def test_there_is_no_level_beyond_the_stored_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"recipe\.refiner: The model below sees 256 voxels as 256; one level up is 512"
    ):
        load_config("published/lidc-256", of("refiner", enabled=True))


# -- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (of("local", process="diffusion"), r"recipe\.local: Unknown process 'diffusion'; there are cosine, flow"),
        (of("local", process=7), r"recipe\.local: process is 7; expected a name \(cosine, flow, ddpm\) or a mapping"),
        (of("local", process={"noise_std": -1.0}), r"recipe\.local\.process: noise_std is -1\.0; expected a positive"),
        (of("local", process={"noise_std": "much"}), r"recipe\.local\.process\.noise_std: .*number, got 'much'"),
        (of("local", process={"name": "flow", "noise_std": 0.5}), "Flow matching has noise_std 1"),
        (of("refiner", process="flow"), "process 'flow' does not fit family 'refiner', which works with: cosine"),
        (
            {"recipe": {"local": {"process": "flow"}, "refiner": {"enabled": True}}},
            r"recipe\.refiner: family 'refiner' works with the process cosine, not with 'flow' of the training it starts",
        ),
        (of("global", process="flow"), r"recipe\.global: process .*flow.* differs from that of the training it starts"),
        (of("global", process={"noise_std": 1.0}), r"recipe\.global: process .*1\.0.* differs from .*0\.5"),
    ],
)
def test_a_process_that_does_not_fit_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("small", overrides)


def test_a_process_is_that_of_the_training_below_or_cosine() -> None:
    published = CosineProcess(0.5, 1000, "noise_image")
    assert [info.process for info in load_config("small").checkpoints().values()] == [published] * 2
    flow = load_config("small", of("local", process="flow"))
    assert [info.process for info in flow.checkpoints().values()] == [FlowProcess()] * 2
    assert flow.checkpoints()["global"].model["out_channels"] == 1


def test_an_override_that_switches_the_process_drops_the_old_ones_settings(tmp_path: Path) -> None:
    """Also where it is named by name alone; one that does not switch keeps what it does not name."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: small\nrecipe: {local: {process: {name: cosine, noise_std: 0.7, prediction: image}}}\n")

    def process(given: Any) -> Any:
        return load_config(str(path), of("local", process=given)).recipe["local"].process

    assert process({}) == CosineProcess(0.7, prediction="image")
    assert process("flow") == process({"name": "flow"}) == FlowProcess()
    assert process("cosine") == process({"name": "cosine"}) == CosineProcess(0.7, prediction="image")
    assert process({"noise_std": 1.0}) == CosineProcess(1.0, prediction="image")
    assert process({"name": "cosine", "prediction": "noise_image"}) == CosineProcess(0.7)
    assert process(None) is None
    path.write_text("base: small\nrecipe: {local: {process: flow}}\n")
    assert process({"name": "cosine", "noise_std": 1.0}) == CosineProcess(1.0)


def test_settings_of_a_family_that_an_override_replaces_are_dropped() -> None:
    """The published local denoiser names `arithmetic`, which a refiner does not know."""
    given = of("local", family="refiner", start="global")
    with pytest.raises(ConfigError) as refused:
        load_config("published/lidc-128", given)
    assert "unknown key" not in str(refused.value)
    assert merge({"family": "a", "settings": {"x": 1}}, {"family": "b", "settings": {"y": 2}}) == {
        "family": "b",
        "settings": {"y": 2},
    }


def test_one_overrides_settings_are_kept_whatever_order_they_are_named_in() -> None:
    """`--set …process.noise_std=1 --set …process.name=flow` must not lose the first silently."""
    assert merge({"process": {"noise_std": 1.0}}, {"process": {"name": "flow"}}) == {
        "process": {"noise_std": 1.0, "name": "flow"}
    }
    assert merge({"settings": {"x": 1}}, {"family": "b"}) == {"settings": {"x": 1}, "family": "b"}


# -- where configurations come from -----------------------------------------------------------------------------------


def test_unknown_configuration_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"'nothing'.*demo.*small"):
        load_config("nothing")


class Point:
    """An entry point as `importlib.metadata` gives it."""

    def __init__(self, name: str, value: str, distribution: str | None = None) -> None:
        self.name, self.value = name, value
        self.dist = None if distribution is None else type("Distribution", (), {"name": distribution})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Make packages of files in `tmp_path`, and entry points that name them."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(*points: Point, **packages: dict[str, str]) -> None:
        for package, content in packages.items():
            for name, text in content.items():
                path = tmp_path / package / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

        def entry_points(*, group: str) -> list[Point]:
            return list(points) if group == "prdit.configurations" else []

        monkeypatch.setattr(module, "entry_points", entry_points)
        module.config_files.cache_clear()

    yield install
    monkeypatch.undo()
    module.config_files.cache_clear()


def test_another_package_adds_configurations(installed: Any) -> None:
    yamls = {"toy/fast.yaml": "base: tiny\nsample: {num_volumes: 3}\n", "toy-bare.yaml": yaml.safe_dump(ONE)}
    more = {"toy-more.yaml": "base: toy/fast\nsplit: {seed: 7}\n"}
    installed(
        Point("one", "toy_configs", "toy"),
        Point("two", "toy_configs_more", "toy"),
        toy_configs=yamls | {"__init__.py": ""},
        toy_configs_more=more,  # a folder without __init__.py
    )
    assert set(config_names()) >= {"demo", "small", "toy/fast", "toy-bare", "toy-more"}
    config = load_config("toy/fast")
    assert (config.base, config.sample.num_volumes) == ("toy/fast", 3)
    assert config.recipe == load_config("tiny").recipe
    assert load_config("toy-more").sample.num_volumes == 3
    assert load_config("toy-bare").recipe == PipelineConfig.model_validate(ONE).recipe
    assert config.tags()["prdit.config"] == "toy/fast"
    assert as_parameters("toy-more") == ("toy-more", {})


def test_a_package_found_twice_on_the_path_is_one(installed: Any) -> None:
    installed(
        Point("one", "toy_twice", "toy"), Point("one", "toy_twice", "toy"), toy_twice={"mine.yaml": "base: tiny\n"}
    )
    assert load_config("mine").recipe == load_config("tiny").recipe


def test_a_configuration_registered_twice_is_refused(installed: Any, tmp_path: Path) -> None:
    installed(Point("one", "toy_clash", "toy"), toy_clash={"small.yaml": "base: tiny\n"})
    with pytest.raises(
        ConfigError,
        match=r"'small' is registered twice: .*flows/configs/small\.yaml, and .*small\.yaml of toy\. Rename",
    ):
        load_config("tiny")


def test_a_package_whose_configurations_cannot_be_read_is_named(installed: Any) -> None:
    installed(Point("lost", "no_such_package.configs"))
    with pytest.raises(
        ConfigError, match=r"configurations of lost cannot be read: 'no_such_package\.configs'.*uninstall lost"
    ):
        load_config("tiny")
    installed(Point("one", "json.decoder", "toy"))
    with pytest.raises(ConfigError, match=r"configurations of toy cannot be read: 'json\.decoder'"):
        load_config("tiny")


@pytest.mark.parametrize("given", [{"configuration": ""}, {"configuration": "demo", "overrides": {"workdir": ""}}])
def test_empty_text_is_no_configuration(given: dict[str, Any]) -> None:
    """An empty name must not mean the defaults of every field, which are the published training's."""
    with pytest.raises(ConfigError, match=r"the configuration is empty text|workdir: String should have at least 1"):
        from_parameters(**given)


def test_base_and_overrides_merge_key_by_key() -> None:
    config = PipelineConfig.model_validate({"base": "small", **of("local", steps=7)})
    small = load_config("small")
    assert config.recipe["local"] == small.recipe["local"].model_copy(update={"steps": 7})
    assert config.recipe["global"] == small.recipe["global"]
    assert list(config.recipe) == ["local", "global", "refiner"]


def test_a_dumped_configuration_loads_to_itself(tmp_path: Path) -> None:
    flow = {"local": {"process": "flow"}, "global": {"settings": {"qk_norm": True}}}
    config = load_config("demo", {"source": "/data/ct", "sample": {"num_volumes": 3}, "recipe": flow})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    again = load_config(str(path))
    assert again == config
    assert list(again.recipe) == list(config.recipe)


# -- digest and tags --------------------------------------------------------------------------------------------------


def test_the_digest_is_the_same_wherever_and_however_fast_a_run_works() -> None:
    small = load_config("small")
    where = {"store": "/x", "workdir": "/y", "source": "/z", "experiment": "e", **of("local", device="cpu")}
    assert load_config("small", where).digest() == small.digest()
    assert load_config("small", where).tags() == small.tags()


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    "part", [*((name,) for name in (*STAGE_FIELDS, "gates")), *(("recipe", n) for n in WHOLE.recipe)]
)
def test_the_digest_changes_with_every_leaf_that_changes_results(part: tuple[str, ...]) -> None:
    config: Any = WHOLE.recipe[part[1]] if part[0] == "recipe" else getattr(WHOLE, part[0])
    for path in set(leaves(config)) - {("enabled",)}:
        other = OTHER.get(path, "another value")
        same = replaced(WHOLE, (*part, *path), other).digest() == WHOLE.digest()
        assert same == (path[0] in config.RUNTIME), ".".join((*part, *path))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_no_leaf_of_the_launcher_changes_the_digest_or_a_stages_key() -> None:
    keys = {name: row.config.key_fields() for name, row in rows(WHOLE).items()}
    found = list(leaves(WHOLE.launcher))
    assert {path[0] for path in found} | {"settings"} == WHOLE.launcher.RUNTIME == set(LauncherConfig.model_fields)
    for path in found:
        other = replaced(WHOLE, ("launcher", *path))
        assert other.launcher != WHOLE.launcher
        assert (other.digest(), other.tags()) == (WHOLE.digest(), WHOLE.tags())
        assert {name: row.config.key_fields() for name, row in rows(other).items()} == keys


def test_a_training_counts_where_it_is_enabled() -> None:
    def digest(**refiner: Any) -> str:
        return load_config("small", of("refiner", **refiner)).digest()

    assert digest(enabled=False, steps=7) == digest()
    assert len({digest(), digest(enabled=True), digest(enabled=True, steps=7)}) == 3
    tags = load_config("small", of("refiner", enabled=True, steps=7)).tags()
    assert tags["prdit.config_overrides"] == "recipe.refiner.enabled, recipe.refiner.steps"


def test_the_order_of_trainings_counts() -> None:
    """The last one is sampled."""
    first, second = ({"family": "local", "steps": steps, "lr": 1e-3} for steps in (10, 20))
    orders = ({"a": first, "b": second}, {"b": second, "a": first})
    digests = [PipelineConfig.model_validate({"recipe": order}).digest() for order in orders]
    assert digests[0] != digests[1]


def test_tags_name_the_keys_that_differ_from_the_named_configuration() -> None:
    trainings = {"local": {"steps": 7, "view": {"size": 16}}, "global": {"settings": {"qk_norm": True}}}
    config = load_config("demo", {"store": "/x", "recipe": trainings, "gates": {"below_start": ["global"]}})
    assert config.tags() == {
        "prdit.config": "demo+overrides",
        "prdit.config_overrides": "gates.below_start, recipe.global.settings.qk_norm, recipe.local.steps, "
        "recipe.local.view.size",
        "prdit.config_digest": config.digest(),
    }
    assert PipelineConfig.model_validate(ONE).tags()["prdit.config"] == "custom"


def test_an_override_that_repeats_the_configuration_is_none() -> None:
    steps = load_config("demo").recipe["local"].steps
    assert load_config("demo", of("local", steps=steps)).tags()["prdit.config"] == "demo"


# -- gates, labels, samplers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (
            {"max_loss_ratio": {"first": 0.5}},
            r"gates\.max_loss_ratio names first; the recipe has local, global, refiner",
        ),
        ({"below_start": ["first"]}, r"gates\.below_start names first; the recipe has local, global, refiner"),
        ({"below_start": ["local"]}, r"gates\.below_start names local, which starts from no other training"),
        (
            {"global_below_local": True},
            r"gates\.global_below_local: unknown key\. Known here: below_start, max_loss_ratio",
        ),
    ],
)
def test_a_gate_that_could_never_be_checked_is_refused(gates: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("small", {"gates": gates})


@pytest.mark.parametrize(("given", "text"), [(True, "True"), (120.0, "120.0"), (3, "3"), ("B", "B")])
def test_labels_are_text_whatever_yaml_makes_of_them(given: object, text: str) -> None:
    assert load_config("small", {"sample": {"label": given}}).sample.label == text


def test_an_empty_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="label is empty"):
        load_config("small", {"sample": {"label": " "}})


LABELLED = of("global", label_column="KVP")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"sample": {"label": "B"}},
            r"training 'global'\. .*label.* of a global transformer .* trained without labels",
        ),
        (
            {"sample": {"label": "B"}, "recipe": {**LABELLED["recipe"], "refiner": {"enabled": True}}},
            r"training 'refiner'\. .* refined model, which takes no labels",
        ),
        (
            {
                "sample": {"label": "B", "guidance_scale": 2.0},
                **of("global", label_column="KVP", label_dropout=0.0),
            },
            r"recipe\.global\.label_dropout 0",
        ),
        (
            {"sample": {"mask_volume": "v"}},
            r"mask was asked for \(sample.mask\) of a global transformer that was trained without",
        ),
        (
            {"sample": {"mask": "/nowhere/mask.nii.gz"}, **of("global", mask="body-and-lungs")},
            r"nothing at the path of sample\.mask",
        ),
        (of("global", enabled=False) | {"gates": {"below_start": []}}, r"training 'local'\. .*got a local denoiser"),
        (of("local", process="flow"), r"training 'global'\. .*'predictor-corrector'.*"),
        (
            of("local", process="flow") | {"sample": {"sampler": "euler", "parametrization": "image"}},
            r"training 'global'\. Flow matching predicts its velocity",
        ),
    ],
)
def test_what_could_not_be_sampled_is_refused_before_training(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sampling(load_config("small", overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"sample": {"label": "B"}, **LABELLED},
        {"sample": {"mask_volume": "v", "guidance_scale": 2.0}, **of("global", mask="body-and-lungs")},
        {"sample": {"label": "B", "guidance_scale": 2.0}, **LABELLED},
        of("refiner", enabled=True),
        of("local", process="flow") | {"sample": {"sampler": "euler"}},
    ],
)
def test_what_can_be_sampled_is_not(overrides: dict[str, Any]) -> None:
    check_sampling(load_config("small", overrides))


def test_a_recipe_of_wavelet_diffusion(tmp_path: Path) -> None:
    """From a file to what will be trained and sampled; what does not fit is named before anything runs."""
    pytest.importorskip("ptwt")
    path, process = tmp_path / "wdm.yaml", {"name": "ddpm", "prediction": "image", "variance": "large"}
    training = {"family": "wdm", "process": process, "view": {"size": 128, "edge": 256}, "steps": 1, "lr": 1e-5}
    path.write_text(
        yaml.safe_dump({"recipe": {"wdm": training}, "sample": {"sampler": "ancestral", "num_steps": 1000}})
    )
    config = load_config(str(path))
    check_sampling(config)
    [info] = config.checkpoints().values()
    assert info.process == DDPMProcess(prediction="image", variance="large")
    assert info.model == {"size": 128, "base_width": 64, "multipliers": [1, 2, 2, 4, 4], "groups": 32}
    with pytest.raises(ValueError, match=r"training 'wdm'\. Sampler 'euler' .* sampled by: ancestral, ddim"):
        check_sampling(load_config(str(path), {"sample": {"sampler": "euler"}}))
    for wrong, message in (
        ({"process": {"name": "ddpm", "prediction": "noise"}}, r"recipe\.wdm: process has prediction 'noise'"),
        ({"process": "cosine"}, r"process 'cosine' does not fit family 'wdm', which works with: ddpm"),
        ({"settings": {"groups": 7}}, "base_width 64 with 7 groups"),
        ({"view": {"size": 36, "edge": 72}}, r"size is 36; .* Use a view.size of 32 or 40"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(str(path), of("wdm", **wrong))


@pytest.mark.parametrize("name", ["My Training", "a.b", 1])
def test_a_trainings_name_is_plain(name: Any) -> None:
    with pytest.raises(ConfigError, match=rf"recipe\.{name}: not a name; use lower-case letters"):
        load_config("tiny", {"recipe": {name: {"family": "local", "steps": 1, "lr": 1.0}}})
