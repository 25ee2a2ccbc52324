"""The flow `reconstruct`: what `prdit reconstruct` does, as a deployment."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field

from flows.config import config_names, from_parameters, pydantic_explained
from flows.console import found_artifact
from flows.hooks import ATTENDED, DAY_S, attended
from flows.parameters import columns
from flows.reconstruct_run import Wanted, figures_table, run, settings_of
from flows.record import tracking_uri
from flows.room import make_room
from storage.errors import ConfigError
from storage.places import as_place
from tasks.run.progress import Advance
from tasks.run.stage import RunContext, StageOutcome, code_version
from tasks.run.task import run_as_task

Choice = Annotated[str, Field(json_schema_extra={"enum": config_names()})]


@flow(name="reconstruct", timeout_seconds=30 * DAY_S, **ATTENDED)
def reconstruct(
    measurement: str = "",
    model: str = "models:/prdit@champion",
    operator: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
    volume: str = "",
    noise_seed: int = 0,
    settings: dict[str, Any] = {},  # noqa: B006
    configuration: Choice = "small",
    overrides: dict[str, Any] = {},  # noqa: B006
) -> dict[str, Any]:
    """Draw volumes towards a measurement: mean, standard deviation and interval, and with `volume` a comparison with the truth.

    Args:
        measurement: NIfTI file, folder with a DICOM series or radiographs, .npy of projections (as the worker sees it); or a store.
        model: Checkpoint of a model of whole volumes: its directory, models:/prdit@champion, or a reference as JSON.
        operator: Name and settings of the operator (docs/guided.md), for example {"name": "thick-slices", "thickness_mm": 5}.
        volume: Id of a volume of the store that is measured by the operator itself. Empty: the measurement is read from files.
        noise_seed: Of the noise of a measurement of a stored volume.
        settings: How volumes are drawn, beyond sample of the configuration, for example {"guide": "pigdm", "num_volumes": 16}.
        configuration: Named configuration whose working folder, runner and sampling are used. docs/guided.md says which differ.
        overrides: Settings that differ from the configuration, nested as in flows/configs/*.yaml. An unknown key is an error.
    """
    with attended():
        if not measurement.strip() or not operator:
            raise ConfigError("measurement and operator must be given: what was measured, and how (docs/guided.md).")
        config = from_parameters(configuration, overrides=overrides)
        make_room(config)
        workdir = Path(config.workdir).resolve()
        tags = {"prdit.code_version": code_version(), **config.tags()}
        if flow_run.get_id():
            tags["prefect.flow_run_id"] = str(flow_run.get_id())
        context = RunContext(
            workdir=workdir,
            tracking_uri=tracking_uri(workdir),
            experiment=config.experiment,
            tags=tags,
            columns=columns(config),
        )

        def run_stage(name: str, work: Callable[[Advance], StageOutcome]) -> StageOutcome:
            hidden = how.mask if name == "reconstruct" else None if volume else measurement
            return run_as_task(name, work, source=hidden)

        how = settings_of(config, pydantic_explained, settings)
        place, checkpoint = as_place(measurement.strip()), found_artifact(model, workdir)
        wanted = Wanted(place, checkpoint, operator, how, volume.strip(), noise_seed)
        try:
            value = run(config, wanted, context, run_stage)
        finally:
            context.flush()
        found = value["reconstruction"]
        notes = " ".join((f"page: {value['page']}.", *found["warnings"]))
        create_table_artifact(key="prdit-reconstruction", table=figures_table(found), description=notes)
        return value
