"""`prdit backup`, `restore`, `migrate`, `serve`: care of the services. Heavy libraries are imported when a command needs them."""

from pathlib import Path
from typing import Annotated

import typer

from flows.console import Json, clear_errors, example, given_path, show_result

_State = Annotated[Path, typer.Option(help="State of the services.")]
_STATE = Path(".prdit/services")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog=example("prdit backup /backup/prdit/2026-11-29"))(backup)
    app.command(epilog=example("prdit restore /backup/prdit/2026-11-29"))(restore)
    app.command(epilog=example("prdit migrate"))(migrate)
    app.command(epilog=example("prdit serve prefect --host 0.0.0.0"))(serve)
    app.command(epilog=example("PREFECT_API_URL=http://server:4200/api prdit deploy"))(deploy)


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder for the back-up.", parser=given_path)],
    state: _State = _STATE,
    as_json: Json = False,
) -> None:
    """Copy what cannot be computed again: databases, ledger, decisions, roles, settings, the secret of the patient keys.

    The services may run. The folder is readable by you only: it holds secrets. Volumes, checkpoints and artifacts are not copied,
    nor is the login of the servers: docs/operations.md.
    """
    with clear_errors():
        from flows.backup import backup as back_up
        from flows.backup import left_out

        document = back_up(folder, state)
        value = {"folder": str(folder), "files": len(document.files), "revisions": document.revisions}
        value["left_out"] = left_out()
        show_result(value, as_json, lambda: f"{len(document.files)} files in {folder}\n{value['left_out']}".rstrip())


def restore(
    folder: Annotated[Path, typer.Argument(help="What `prdit backup` wrote.", parser=given_path)],
    state: _State = _STATE,
    as_json: Json = False,
) -> None:
    """Put this folder back to a back-up; the services must not run. What is replaced is kept in `.prdit/replaced/`."""
    with clear_errors():
        from flows.backup import restore as put_back

        document, aside = put_back(folder, state)
        value = {"created": document.created, "files": len(document.files), "replaced": str(aside) if aside else None}
        kept = f"; what was there before is in {aside}" if aside else ""
        show_result(
            value,
            as_json,
            lambda: (
                f"restored the state of {document.created}: {len(document.files)} files{kept}\n"
                "Patients who were forgotten since then must be forgotten again: their runs may be named in the databases."
            ),
        )


def migrate(
    folder: Annotated[
        Path | None, typer.Option("--backup", help="Folder of the back-up; default: a new one in .prdit/backups.")
    ] = None,
    state: _State = _STATE,
    as_json: Json = False,
) -> None:
    """Back up, then bring databases that an older Prefect or MLflow wrote to the installed versions; the services must not run."""
    with clear_errors():
        from flows.backup import back_up_and_migrate

        place, names = back_up_and_migrate(folder, state)
        value = {"backup": str(place), "migrated": names}
        text = f"{' and '.join(names)} migrated; the state before is in {place} (prdit restore {place})"
        show_result(value, as_json, lambda: text)


def serve(
    name: Annotated[str, typer.Argument(help="prefect, mlflow, worker, watcher or listener.")],
    host: Annotated[
        str, typer.Option(help="Address a server listens on; another than this machine needs a login.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; default: 4200 and 5000.")] = None,
    state: _State = _STATE,
) -> None:
    """Run one service in the foreground, for systemd units and containers (deploy/); `prdit up` starts all that one machine needs.

    Worker, watcher and listener find the servers by PREFECT_API_URL and MLFLOW_TRACKING_URI.
    """
    with clear_errors():
        from flows.serve import SERVICES, become
        from storage.errors import ConfigError

        if name not in SERVICES:
            raise ConfigError(f"There is no service {name!r}; there are {', '.join(SERVICES)}.")
        become(name, state.resolve(), host=host, port=port)


def deploy(as_json: Json = False) -> None:
    """Register the deployments at the server of PREFECT_API_URL; their runs work in this folder. `prdit up` does it by itself."""
    with clear_errors():
        import os

        from flows.services import DEFAULT_STATE_DIR, Services
        from flows.services import deploy as register_deployments
        from storage.errors import ConfigError

        api, mlflow = os.environ.get("PREFECT_API_URL", "").rstrip("/"), os.environ.get("MLFLOW_TRACKING_URI", "")
        if not api.endswith("/api"):
            raise ConfigError(f"PREFECT_API_URL must be the address of a Prefect server and end in /api, got {api!r}.")
        page = api.removesuffix("/api")
        services = Services(state_dir=DEFAULT_STATE_DIR.resolve(), prefect_ui_url=page, mlflow_url=mlflow)
        register_deployments(services, Path.cwd())
        show_result({"prefect": page}, as_json, lambda: f"registered at {page}; runs work in {Path.cwd()}")
