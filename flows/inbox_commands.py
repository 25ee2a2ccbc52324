"""`prdit watch`, `prdit listen`, `prdit inbox`: new scans. Imports of heavy libraries wait until a command needs them."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import Json, clear_errors, example, given_path, show_result, stop_as_ctrl_c
from storage.places import as_folder, as_place

_Inbox = Annotated[Path | None, typer.Option(help="Inbox (default: the site's).", parser=given_path)]
_Arrivals = Annotated[
    Path | None, typer.Option(help="Folder of ledger and batches (default: the site's).", parser=given_path)
]
_Number = Annotated[int, typer.Argument(help="Number of the batch (`prdit inbox`).")]
inbox_app = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(epilog=example("prdit watch"))(watch)
    app.command(epilog=example("prdit listen --allow SCANNER1 --allow PACS"))(listen)
    app.add_typer(inbox_app, name="inbox", help="What is in the inbox: scans that arrive, and batches of them.")


def watch(
    inbox: _Inbox = None,
    arrivals: _Arrivals = None,
    quiet: Annotated[float | None, typer.Option(min=0.1, help="Seconds without a change; default: the site's.")] = None,
    events: Annotated[bool, typer.Option(help="Be woken by events of the file system; else look every minute.")] = True,
) -> None:
    """Watch the inbox, and report complete scans to Prefect, which starts a retraining. `prdit up` runs it as a service.

    The inbox is looked at when something happens in it and every minute. Nothing in it is moved, changed or deleted.
    """
    with clear_errors():
        site = _site()
        folder, ledger_folder = _places(site, inbox, arrivals)
        _log_times()
        stop_as_ctrl_c()
        from storage.inbox_ledger import Ledger
        from tasks.inbox.config import Timing
        from tasks.inbox.watch import Pace
        from tasks.inbox.watch import watch as watch_inbox

        folder.mkdir(parents=True, exist_ok=True)
        timing = Timing(quiet_s=site.inbox.quiet_s if quiet is None else quiet)
        ledger = Ledger(ledger_folder)
        logging.getLogger("prdit.inbox").info("watching %s", folder)
        watch_inbox(ledger, folder, _emit, timing=timing, pace=Pace(events=events))


def listen(
    allow: Annotated[
        list[str] | None, typer.Option(help="AE title that may send; may be repeated. Default: the site's.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="TCP port (default: the site's).")] = None,
    host: Annotated[str | None, typer.Option(help="Address; 0.0.0.0 for the whole network.")] = None,
    ae_title: Annotated[str | None, typer.Option(help="Its own AE title (default: the site's).")] = None,
    inbox: _Inbox = None,
    arrivals: _Arrivals = None,
) -> None:
    """Receive CT by DICOM C-STORE into the inbox. On 127.0.0.1 and for named AE titles only, unless the site says otherwise.

    Each object is durable under a name of our own before its sender is told so. CT images (classic, enhanced, legacy converted)
    are accepted, in every transfer syntax that an ingest decodes.
    """
    with clear_errors():
        import threading

        site = _site()
        folder, ledger_folder = _places(site, inbox, arrivals)
        _log_times()
        stop_as_ctrl_c()
        from flows.settings_text import explained
        from tasks.inbox.config import ListenerConfig
        from tasks.inbox.listener import Listener

        given = {"allowed": allow, "port": port, "host": host, "ae_title": ae_title}
        configured = site.listener or ListenerConfig()
        with explained("listener", ListenerConfig):
            config = ListenerConfig.model_validate(
                configured.model_dump() | {name: value for name, value in given.items() if value is not None}
            )
        listener = Listener(config, folder, ledger_folder)
        logging.getLogger("prdit.listener").info(
            "listening on %s:%d as %s", config.host, listener.port, config.ae_title
        )
        listener.serve(threading.Event())


def _emit(num_series: int, num_batches_open: int) -> bool:
    from flows.events import emit_arrived

    return emit_arrived(num_series, num_batches_open)


@inbox_app.callback(epilog=example("prdit inbox --json"))
def inbox(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Taken and ignored items, too.")] = False,
    arrivals: _Arrivals = None,
    as_json: Json = False,
) -> None:
    """List what arrives or waits in the inbox, and the batches. `prdit inbox release N`, `reject N`: of a held one."""
    if context.invoked_subcommand is None:
        _list(everything, arrivals, as_json)


@inbox_app.command(name="ls", epilog=example("prdit inbox ls"))
def ls(
    everything: Annotated[bool, typer.Option("--all", help="Taken and ignored items, too.")] = False,
    arrivals: _Arrivals = None,
    as_json: Json = False,
) -> None:
    """List what arrives or waits in the inbox, and the batches."""
    _list(everything, arrivals, as_json)


def _list(everything: bool, arrivals: Path | None, as_json: bool) -> None:
    with clear_errors():
        from dataclasses import asdict

        ledger = _ledger(arrivals)
        items = [one for one in ledger.files.items() if everything or one.state in ("arriving", "complete")]
        value = {
            "arrivals": str(ledger.folder),
            "counts": ledger.counts(),
            "not_scans": ledger.files.reasons(),
            "items": [asdict(one) for one in items],
            "batches": [asdict(one) | {"folder": str(one.folder)} for one in ledger.batches()],
        }
        show_result(value, as_json, lambda: _text(value))


@inbox_app.command(epilog=example("prdit inbox release 3"))
def release(number: _Number, arrivals: _Arrivals = None, as_json: Json = False) -> None:
    """Release a held batch: the next retraining ingests it without the drift gate."""
    with clear_errors():
        batch = _ledger(arrivals).release(number)
        text = f"batch {number} is released: the next retraining ingests it without the drift gate"
        show_result(_batch_value(batch), as_json, lambda: text)


@inbox_app.command(epilog=example("prdit inbox reject 3"))
def reject(
    number: _Number,
    reason: Annotated[str, typer.Option(help="Why, for those who look at it later.")] = "",
    arrivals: _Arrivals = None,
    as_json: Json = False,
) -> None:
    """Reject a held batch: its scans are never listed. Nothing is deleted in the inbox."""
    with clear_errors():
        batch = _ledger(arrivals).reject(number, reason)
        show_result(_batch_value(batch), as_json, lambda: f"batch {number} is rejected: its scans are never listed")


def _batch_value(batch: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(batch) | {"folder": str(batch.folder)}


def _text(value: dict[str, Any]) -> str:
    lines = []
    for item in value["items"]:
        of = "" if item["expected"] is None else f" of {item['expected']}"
        by = f" by {item['how']}" if item["how"] else ""
        lines.append(f"{item['state'] + by:<24}  {item['images']}{of} file(s)  {item['item']}")
    for batch in value["batches"]:
        state = batch["state"] + (", released" if batch["released"] and batch["state"] == "open" else "")
        lines.append(
            f"batch {batch['number']:>5}  {state:<14}  {batch['num_series']} series  {batch['created']}  {batch['reason']}".rstrip()
        )
    counts = ", ".join(f"{number} {state}" for state, number in value["counts"].items())
    lines.append(f"series and single files: {counts or 'none was seen'}")
    if value["not_scans"]:
        lines.append(
            "files without a part in a scan: " + ", ".join(f"{n} {why}" for why, n in value["not_scans"].items())
        )
    return "\n".join(lines)


# ---- where things are --------------------------------------------------------------------------------------------------


def _site() -> Any:
    from flows.site import load_site

    return load_site()


def _places(site: Any, inbox: Path | None, arrivals: Path | None) -> tuple[Path, Path]:
    """Inbox and folder of the ledger, which are refused where they or the store lie in each other."""
    from tasks.inbox.config import check_places

    folder, ledger = inbox or Path(site.inbox.folder), arrivals or Path(site.inbox.arrivals)
    for place, what in ((folder, "the inbox"), (ledger, "the folder of the arrivals")):
        as_folder(place, what)
    check_places(folder, ledger, as_place(site.store))
    return folder, ledger


def _ledger(arrivals: Path | None) -> Any:
    """The ledger that is there. Raises: ConfigError: there is none."""
    from storage.errors import ConfigError
    from storage.inbox_database import NAME
    from storage.inbox_ledger import Ledger

    folder = arrivals or Path(_site().inbox.arrivals)
    if not (folder / NAME).is_file():
        raise ConfigError(
            f"There is no ledger of an inbox in {folder}. `prdit watch` makes it (prdit up starts that); or name its folder with "
            "--arrivals."
        )
    return Ledger(folder)


def _log_times() -> None:
    """Put times into what is logged, which the supervisor keeps."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
