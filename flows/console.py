"""What every command of `prdit` shares: options, errors, results. Imports of heavy libraries wait until a command needs them."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.faults import clear_errors as clear_errors
from flows.faults import json_line as json_line
from storage.places import as_place
from tasks.run.printable import printable

logger = logging.getLogger("prdit")


def given_path(text: str) -> Path:
    """A path argument, or an `s3://` URL; empty text (an unset shell variable) would silently mean the current directory."""
    if not text.strip():
        raise typer.BadParameter("the path is empty; is a shell variable unset? Use . for the current directory.")
    return as_place(text)


def given_name(text: str) -> str:
    """The name of a configuration or policy; empty text would silently mean the default."""
    if not text.strip():
        raise typer.BadParameter("the name is empty; is a shell variable unset? Leave the option out for the default.")
    return text


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout, of an error, too.")
]
Config = Annotated[str, typer.Option("--config", "-c", help="Named configuration or a YAML file.")]
SiteOrConfig = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="TEXT",
        help="Named configuration or a YAML file (default: the site's settings).",
        parser=given_name,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a setting by its dotted key; may be repeated."),
]
Store = Annotated[Path | None, typer.Option(help="Volume store (default: the configuration's).", parser=given_path)]
Workdir = Annotated[
    Path | None, typer.Option(help="Folder of all stage directories (default: the configuration's).", parser=given_path)
]


def example(text: str) -> str:
    """A command's epilog."""
    return f"Example: `{text}`"


def show_result(value: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """A command's result on stdout: one JSON object in ASCII, or text for people, printable."""
    sys.stdout.write((json_line(value) if as_json else printable(text())) + "\n")


def overrides(settings: list[str] | None) -> dict[str, Any]:
    """Nested settings of `--set KEY=VALUE` options.

    Raises: ConfigError: one is not KEY=VALUE, or its value is not YAML.
    """
    from flows.config import merge
    from flows.settings_text import parse
    from storage.errors import ConfigError

    values: dict[str, Any] = {}
    for setting in settings or []:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {setting!r} must read KEY=VALUE, for example --set recipe.local.steps=100")
        nested: Any = parse(text, f"--set {setting!r}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        values = merge(values, nested)
    return values


def load_settings(config: str, settings: list[str] | None, **paths: Path | str | None) -> Any:
    """The configuration a command runs with: by name or file, then `--set`, then paths given as options."""
    from flows.config import load_config, merge

    given = {key: str(value) for key, value in paths.items() if value is not None}
    return load_config(config, merge(overrides(settings), given))


def installed_settings(
    config: str | None, settings: list[str] | None = None, *, store: Path | None = None, workdir: Path | None = None
) -> Any:
    """The configuration of a command about what is installed here: the site's, unless a configuration or another store is given."""
    from flows.config import merge
    from flows.installation import site_config
    from flows.site import load_site

    if config is None:
        site = load_site()
        if store is None or store.resolve() == as_place(site_config(site).store).resolve():
            given = merge(overrides(settings), {"workdir": str(workdir)} if workdir else {})
            return site_config(site, overrides=given)
    return load_settings(config or "small", settings, store=store, workdir=workdir)


def find_ref(text: str, workdir: Path | str | None = None) -> Any:
    """A reference typed in as JSON, the directory of a committed artifact, or a version of the registered model.

    Args:
        text: such as `models:/prdit@champion`.
        workdir: working folder, whose checkpoints and MLflow are meant; default: the site's.
    """
    from flows.config import pydantic_explained
    from storage.artifacts import Ref, committed_ref
    from storage.errors import MissingArtifactError
    from storage.registry import is_model_name

    if text.lstrip().startswith("{"):
        with pydantic_explained(f'{text!r} is not a reference {{"kind", "uri", "digest"}}'):
            return Ref.model_validate_json(text)
    if is_model_name(text):
        from flows.installation import registry_uri
        from storage.model_names import resolve

        place = Path(workdir or installed_settings(None).workdir).resolve()
        return resolve(text, registry_uri(place), place)
    found = committed_ref(Path(text)) if Path(text).is_dir() else None
    if found is None:
        raise MissingArtifactError(
            f"{text} is not the directory of a committed artifact (no provenance.json). Give a stage directory such as "
            ".prdit/work/train-global/<key>, a registered model such as models:/prdit@champion, or a reference as JSON."
        )
    return found


def wait_for_server() -> None:
    """Give the temporary server of a flow that runs here, without PREFECT_API_URL, the time that it takes on a busy machine.

    To be called before Prefect is imported.
    """
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def stop_as_ctrl_c() -> None:
    """Make SIGTERM what Ctrl-C is: the training saves its state, runs are closed as stopped, servers end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def run_context(config: Any) -> Iterator[Any]:
    """Where a single stage works: tracked only where MLFLOW_TRACKING_URI says so. Ends when what it recorded is sent."""
    from flows.parameters import columns, run_parameters
    from tasks.run.stage import RunContext, code_version

    tags = {"prdit.code_version": code_version(), **config.tags()}
    uri = os.environ.get("MLFLOW_TRACKING_URI") or None
    context = RunContext(
        workdir=Path(config.workdir),
        tracking_uri=uri,
        experiment=config.experiment,
        tags=tags,
        parameters=run_parameters(config),
        columns=columns(config),
    )
    stop_as_ctrl_c()
    try:
        yield context
    except BaseException as error:
        context.flush(stopped=not isinstance(error, Exception))
        raise
    context.flush()


def found_artifact(text: str, workdir: Path | str | None = None) -> Any:
    """`find_ref`, then verified by hash; a warning where it learned from a patient who was forgotten since.

    Raises: StorageError: it is missing or damaged.
    """
    from storage.artifacts import load_provenance, verify_artifact

    ref = find_ref(text, workdir)
    verify_artifact(ref)
    if forgotten := load_provenance(ref).forgotten:
        logger.warning("this %s learned from volumes that are not there any more: %s", ref.kind, forgotten)
    return ref


def run_stages(config: Any, last: str, given: dict[str, Any]) -> Any:
    """Run the stages that `last` needs, each with its progress, and return the outcome of the last.

    Args:
        config: of the run.
        last: name of the stage.
        given: references that exist already, by stage name; a snapshot of the store, where ingest is not asked for.
    """
    from flows.stages import Inputs, Row, check_trainings, needed, real_volumes, rows, walk
    from tasks.run.progress import show_progress
    from tasks.run.stage import StageOutcome

    table, refs = rows(config), dict(given)
    if last != "ingest" and "ingest" not in refs and "ingest" in needed(table, last, refs):
        refs["ingest"] = real_volumes(config)
    check_trainings(config, needed(table, last, refs))
    with run_context(config) as context:

        def run(row: Row, inputs: Inputs) -> StageOutcome:
            with show_progress(row.name) as progress:
                return row.run(inputs, context, progress)

        return list(walk(table, last, refs, run))[-1][1]


def show_outcome(outcome: Any, as_json: bool) -> None:
    """A stage's reference, and whether it was cached."""
    value = outcome.model_dump(mode="json")
    how = "cached" if outcome.cached else f"in {outcome.seconds:.0f} s"
    show_result(value, as_json, lambda: f"{outcome.ref.kind} {how}: {outcome.ref.uri}\n{json_line(value['ref'])}")
