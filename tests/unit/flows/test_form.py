"""The flows' parameters as Prefect's page shows and submits them: untouched, they are exactly the named configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.schema_tools.hydration import HydrationContext, hydrate

from flows import pipeline
from flows.config import ConfigError, PipelineConfig, as_parameters, config_names, from_parameters, load_config
from tests.factories import page_submits

# Custom run, submitted untouched, as recorded from the page (Prefect 3.8.8). The page's second design sends `overrides` as
# {}, and Quick run sends no parameters at all.
RECORDED = {"configuration": "demo", "source": "", "store": "", "overrides": {"__prefect_kind": "json", "value": "{}"}}


def deployments() -> list[dict[str, Any]]:
    content = yaml.safe_load((Path(__file__).resolve().parents[3] / "prefect.yaml").read_text())
    return list(content["deployments"])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PipelineConfig, str]]:
    """What the flows hand on, instead of running it."""
    calls: list[tuple[PipelineConfig, str]] = []
    monkeypatch.setattr(pipeline, "run_through", lambda config, last: calls.append((config, last)))
    return calls


@pytest.mark.parametrize("deployment", deployments(), ids=lambda item: item["name"])
def test_the_form_of_every_deployment(deployment: dict[str, Any], repository: Path) -> None:
    flow: Any = load_flow_from_entrypoint(str(repository / deployment["entrypoint"]))
    assert flow.name == "prdit"
    schema = flow.parameters.model_dump_for_openapi()
    assert page_submits(schema) == RECORDED
    fields = schema["properties"]
    assert fields["configuration"]["enum"] == config_names()
    assert all(len(field["description"]) > 40 for field in fields.values())
    assert "required" not in schema


@pytest.mark.parametrize("name", config_names())
@pytest.mark.parametrize("overrides", [RECORDED["overrides"], {}])
def test_a_choice_and_nothing_else_is_that_configuration(
    name: str, overrides: Any, ran: list[tuple[PipelineConfig, str]]
) -> None:
    submitted = hydrate(RECORDED | {"configuration": name, "overrides": overrides}, HydrationContext())
    pipeline.full_pipeline.fn(**submitted)
    [(config, last)] = ran
    assert last == "evaluate"
    assert config == load_config(name)
    assert config.digest() == load_config(name).digest()
    assert config.tags()["prdit.config"] == name
    assert "prdit.config_overrides" not in config.tags()


def test_what_is_filled_in_lies_on_top(ran: list[tuple[PipelineConfig, str]]) -> None:
    given = {"configuration": "small", "source": " /data/ct\n", "store": "/data/store"}
    pipeline.through_sample.fn(**given, overrides={"sample": {"num_volumes": 3}})
    expected = {"source": "/data/ct", "store": "/data/store", "sample": {"num_volumes": 3}}
    assert ran == [(load_config("small", expected), "sample")]


def test_the_refiners_deployment_enables_it_and_says_so(ran: list[tuple[PipelineConfig, str]]) -> None:
    pipeline.through_train_refiner.fn(configuration="tiny")
    [(config, last)] = ran
    assert (config.train_refiner.enabled, last) == (True, "train-refiner")
    assert config.stages(last) == ("split", "train-local", "train-global", "train-refiner")
    assert config.tags()["prdit.config"] == "tiny+overrides"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"configuration": "tiny", "overrides": {"train_local": {"rate": 1}}},
            r"train_local\.rate: unknown key.*\blr\b",
        ),
        ({"configuration": "nothing"}, "'nothing' is not a configuration of prdit; there are demo, "),
        ({"configuration": "tiny", "overrides": {"base": "small", "store": "x"}}, "base, store cannot be set here"),
    ],
)
def test_what_cannot_run_is_refused_by_name(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.full_pipeline.fn(**parameters)


def test_ingest_without_a_source_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="source is not given"):
        pipeline.through_ingest.fn(configuration="tiny")


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
