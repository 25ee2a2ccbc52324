"""The flow's parameters as Prefect's page shows and submits them: untouched, they are exactly the named configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.schema_tools.hydration import HydrationContext, hydrate

from flows import pipeline
from flows.automations import RETRAIN_QUEUE
from flows.config import PipelineConfig, as_parameters, config_names, from_parameters, load_config
from flows.events import ARRIVED, DEPLOYMENT
from flows.named_files import benchmark_files
from flows.services import DEPLOYMENTS, WORK_POOL
from flows.stages import needed, rows, stage_names
from storage.artifacts import Ref
from storage.errors import ConfigError
from tests.factories import page_submits

# Custom run, submitted untouched, as recorded from the page (Prefect 3.8.8). The page's second design sends `overrides` as
# {}, and Quick run sends no parameters at all.
RECORDED = {
    "configuration": "demo",
    "source": "",
    "store": "",
    "overrides": {"__prefect_kind": "json", "value": "{}"},
    "stage": "evaluate",
}
STORE = {"ingest": Ref(kind="snapshot", uri="/store", digest="sha256:0")}


def deployments() -> list[dict[str, Any]]:
    content = yaml.safe_load(DEPLOYMENTS.read_text())
    return list(content["deployments"])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PipelineConfig, str]]:
    """What the flow would run, instead of running it."""
    calls: list[tuple[PipelineConfig, str]] = []
    monkeypatch.setattr(pipeline, "run_through", lambda config, last: calls.append((config, last)))
    return calls


def full_name(deployment: dict[str, Any]) -> str:
    flow: Any = load_flow_from_entrypoint(deployment["entrypoint"])
    return f"{flow.name}/{deployment['name']}"


def test_every_deployment_is_there_once() -> None:
    stages = ["ingest", "split", "train-local", "train-global", "train-refiner", "sample", "evaluate"]
    assert tuple(stages) == stage_names()
    assert sorted(map(full_name, deployments())) == sorted(
        [f"prdit/{name}" for name in ("full-pipeline", "lidc-128", "radchest-128", "lidc-256", *stages)]
        + [
            "retrain/on-new-scans",
            "retrain/nightly",
            "maintenance/verify",
            "benchmark/compare",
            "reconstruct/from-measurement",
        ]
    )


@pytest.mark.parametrize("deployment", deployments(), ids=lambda item: item["name"])
def test_the_form_of_every_deployment(deployment: dict[str, Any]) -> None:
    flow: Any = load_flow_from_entrypoint(deployment["entrypoint"])
    schema = flow.parameters.model_dump_for_openapi()
    fields, given = schema["properties"], deployment.get("parameters", {})
    assert set(given) <= set(fields)
    assert all(len(field["description"]) > 40 for field in fields.values())
    assert all(given[key] in field["enum"] for key, field in fields.items() if key in given and "enum" in field)
    assert "required" not in schema
    assert 40 < len(deployment["description"]) < 160
    assert deployment["tags"][0] == "prdit"
    assert flow.timeout_seconds >= 24 * 3600
    assert flow.retries == 2
    if flow.name == "prdit":
        assert page_submits(schema) == RECORDED
        assert fields["configuration"]["enum"] == config_names()
        assert fields["stage"]["enum"] == list(stage_names())
    elif flow.name == "benchmark":
        assert fields["configuration"]["enum"] == list(benchmark_files())
        assert page_submits(schema) == {name: RECORDED[name] for name in ("source", "store", "overrides")} | {
            "configuration": "benchmark/tiny",
            "only": "",
        }
    elif flow.name == "reconstruct":
        mappings = dict.fromkeys(("operator", "settings", "overrides"), RECORDED["overrides"])
        assert page_submits(schema) == {
            "measurement": "",
            "volume": "",
            "noise_seed": 0,
            "configuration": "small",
        } | mappings | {"model": "models:/prdit@champion"}
    else:  # untouched, the site's settings
        assert {"", *config_names()} == {*fields["configuration"]["enum"]}
        untouched = dict.fromkeys(fields, "") | {"overrides": RECORDED["overrides"]}
        assert page_submits(schema) == untouched


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("full-pipeline", "demo"),
        ("lidc-128", "published/lidc-128"),
        ("radchest-128", "published/rad-128"),
        ("lidc-256", "published/lidc-256"),
    ],
)
def test_a_deployments_form_untouched_runs_what_its_name_says(
    name: str, configuration: str, ran: list[tuple[PipelineConfig, str]]
) -> None:
    [deployment] = [item for item in deployments() if item["name"] == name]
    submitted = hydrate(RECORDED | deployment.get("parameters", {}), HydrationContext())
    pipeline.pipeline.fn(**submitted)
    assert ran == [(load_config(configuration), "evaluate")]


def test_one_retraining_runs_at_a_time_by_event_or_by_night() -> None:
    found = {full_name(item): item for item in deployments()}
    event, nightly, verify = (found[n] for n in ("retrain/on-new-scans", "retrain/nightly", "maintenance/verify"))
    assert {item["work_pool"]["name"] for item in found.values()} == {WORK_POOL}
    assert [n for n, item in found.items() if item["work_pool"]["work_queue_name"] == RETRAIN_QUEUE] == [
        "retrain/on-new-scans",
        "retrain/nightly",
    ]
    [trigger] = event["triggers"]
    assert trigger["expect"] == [ARRIVED]
    assert DEPLOYMENT == "retrain/on-new-scans"
    assert [item["cron"].split()[2:] for item in nightly["schedules"]] == [["*", "*", "*"]]  # every day
    assert [item["cron"].split()[2:] for item in verify["schedules"]] == [["*", "*", "0"]]  # every Sunday
    assert all(
        "schedules" not in item for n, item in found.items() if n not in ("retrain/nightly", "maintenance/verify")
    )


@pytest.mark.parametrize("name", config_names())
@pytest.mark.parametrize("overrides", [RECORDED["overrides"], {}])
def test_a_choice_and_nothing_else_is_that_configuration(
    name: str, overrides: Any, ran: list[tuple[PipelineConfig, str]]
) -> None:
    submitted = hydrate(RECORDED | {"configuration": name, "overrides": overrides}, HydrationContext())
    pipeline.pipeline.fn(**submitted)
    [(config, last)] = ran
    assert last == "evaluate"
    assert config == load_config(name)
    assert config.digest() == load_config(name).digest()
    assert config.tags()["prdit.config"] == name
    assert "prdit.config_overrides" not in config.tags()


def test_what_is_filled_in_lies_on_top(ran: list[tuple[PipelineConfig, str]]) -> None:
    given = {"configuration": "small", "source": " /data/ct\n", "store": "/data/store"}
    pipeline.pipeline.fn(**given, overrides={"sample": {"num_volumes": 3}}, stage="sample")
    expected = {"source": "/data/ct", "store": "/data/store", "sample": {"num_volumes": 3}}
    assert ran == [(load_config("small", expected), "sample")]


@pytest.mark.parametrize("overrides", [{}, {"recipe": {"refiner": {"steps": 7}}}])
def test_naming_the_refiners_stage_enables_it_and_says_so(
    overrides: dict[str, Any], ran: list[tuple[PipelineConfig, str]]
) -> None:
    pipeline.pipeline.fn(configuration="tiny", store="/store", overrides=overrides, stage="train-refiner")
    [(config, last)] = ran
    assert (config.recipe["refiner"].enabled, last, config.store) == (True, "train-refiner", "/store")
    assert config.recipe["refiner"].steps == (7 if overrides else 10)
    assert needed(rows(config), last, STORE) == ("split", "train-local", "train-global", "train-refiner")
    assert config.tags()["prdit.config"] == "tiny+overrides"


@pytest.mark.parametrize("stage", [name for name in stage_names() if name != "train-refiner"])
def test_another_stage_leaves_the_refiner_off(stage: str, ran: list[tuple[PipelineConfig, str]]) -> None:
    pipeline.pipeline.fn(configuration="tiny", stage=stage)
    assert ran == [(load_config("tiny"), stage)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"configuration": "tiny", "overrides": {"recipe": {"local": {"rate": 1}}}},
            r"recipe\.local\.rate: unknown key.*\blr\b",
        ),
        (
            {"configuration": "tiny", "overrides": {"recipe": {"local": {"settings": {"rate": 1}}}}},
            r"recipe\.local\.settings\.rate: unknown key.*\bpreset\b",
        ),
        ({"configuration": "nothing"}, "'nothing' is not a configuration of prdit; there are demo, "),
        ({"configuration": "tiny", "overrides": {"base": "small", "store": "x"}}, "base, store cannot be set here"),
    ],
)
def test_what_cannot_run_is_refused_by_name(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.pipeline.fn(**parameters)


def test_a_stage_that_the_configuration_lacks_is_refused(tmp_path: Path) -> None:
    overrides = {"workdir": str(tmp_path / "work")}
    with pytest.raises(
        ValueError, match=r"stage 'train-other' is not a stage of this configuration, which has ingest, split, "
    ):
        pipeline.pipeline.fn(configuration="tiny", overrides=overrides, stage="train-other")
    assert not (tmp_path / "work").exists()


def test_what_cannot_be_sampled_is_refused_before_anything_runs(tmp_path: Path) -> None:
    overrides = {"workdir": str(tmp_path / "work"), "sample": {"label": "B"}}
    with pytest.raises(ValueError, match="trained without labels"):
        pipeline.pipeline.fn(configuration="tiny", overrides=overrides)
    assert not (tmp_path / "work").exists()


def test_ingest_without_a_source_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="source is not given"):
        pipeline.pipeline.fn(configuration="tiny", stage="ingest")


def test_a_file_is_its_base_with_the_rest_as_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: small\nsample: {num_volumes: 3}\n")
    configuration, overrides = as_parameters(str(path))
    assert (configuration, overrides) == ("small", {"sample": {"num_volumes": 3}})
    assert from_parameters(configuration, overrides=overrides) == load_config(str(path))
    assert as_parameters("small") == ("small", {})
    path.write_text("sample: {num_volumes: 3}\n")
    with pytest.raises(ConfigError, match="names no base"):
        as_parameters(str(path))
