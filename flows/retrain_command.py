"""`prdit retrain`: what `retrain/on-new-scans` runs, in this process. Heavy libraries are imported where they are needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.console import (
    Json,
    Set,
    SiteOrConfig,
    Store,
    clear_errors,
    given_name,
    given_path,
    overrides,
    show_result,
    stop_as_ctrl_c,
    wait_for_server,
)

if TYPE_CHECKING:
    from flows.retrain_setup import Setup


def retrain(
    config: SiteOrConfig = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Policy by name (default, eager, cautious) or a YAML file; default: the site's.",
            parser=given_name,
        ),
    ] = None,
    inbox: Annotated[Path | None, typer.Option(help="Inbox (default: the site's).", parser=given_path)] = None,
    arrivals: Annotated[
        Path | None, typer.Option(help="Folder of ledger and batches (default: the site's).", parser=given_path)
    ] = None,
    store: Store = None,
    settings: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen and why; nothing is changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ingest new scans of the inbox, and train, judge and promote or hold a challenger where the policy says so.

    Exit code 0 whatever was decided: the reason is printed. docs/operations.md says what the states mean and what to do.
    """
    with clear_errors():
        given = {"configuration": config, "inbox": inbox, "store": store, "policy": policy, "arrivals": arrivals}
        texts = {name: "" if value is None else str(value) for name, value in given.items()}
        from flows.installation import use_services
        from flows.retrain_setup import Setup

        use_services()  # as the deployments do: one registered model, and the run is in the same list
        setup = Setup.of(**texts, overrides=overrides(settings))  # before the server starts
        if dry_run:
            value = foreseen(setup)
            show_result(value, as_json, lambda: _foreseen_text(value))
            return
        wait_for_server()
        from flows.retrain import retrain as run

        stop_as_ctrl_c()
        result = run(**texts, overrides=overrides(settings))
        show_result(result, as_json, lambda: f"{result['state']}: {result['reason']}")


def foreseen(setup: "Setup") -> dict[str, Any]:
    """What a retraining would do now: batches as the ledger knows them, what is due, and how it would train; reads only."""
    from flows.installation import opened_ledger
    from storage.registry import CHAMPION
    from tasks.retrain.due import due
    from tasks.retrain.rounds import Rounds

    rounds, champion = Rounds(setup.workdir), setup.registry().find(CHAMPION)
    with opened_ledger(setup.arrivals) as ledger:
        known = ledger.batches() if ledger else []
        num_waiting = ledger.waiting()[0] if ledger else 0
    begun = rounds.newest()
    goes_on = begun is not None and not begun.outcome and begun.settings == setup.settings
    decision = due(setup.policy, setup.facts(rounds, champion))
    return {
        "policy": setup.policy_name,
        "series_waiting": num_waiting,
        "batches_open": [one.number for one in known if one.state == "open"],
        "batches_held": [one.number for one in known if one.state == "held"],
        "goes_on": begun.begun if begun and goes_on else None,
        "state": "train" if goes_on else decision.state,
        "reason": begun.reason if begun and goes_on else decision.reason,
        "champion": champion.version if champion else None,
        "start": "champion" if setup.is_warm(champion) else "scratch",
    }


def _foreseen_text(value: dict[str, Any]) -> str:
    lines = []
    if count := value["series_waiting"]:
        lines.append(f"complete series that would be ingested first, which may change what follows: {count}")
    if value["batches_open"]:
        numbers = ", ".join(map(str, value["batches_open"]))
        lines.append(f"batches that would be ingested first, which may change what follows: {numbers}")
    if value["batches_held"]:
        lines.append(f"batches that wait for a person: {', '.join(map(str, value['batches_held']))} (prdit inbox ls)")
    champion = "there is no champion" if value["champion"] is None else f"champion: version {value['champion']}"
    lines.append(f"policy {value['policy']}; {champion}")
    if value["goes_on"]:
        lines.append(f"the retraining that was begun at {value['goes_on']} would go on: {value['reason']}")
    elif value["state"] == "train":
        start = "the champion's weights" if value["start"] == "champion" else "fresh weights"
        lines.append(f"a challenger would be trained, from {start}: {value['reason']}")
    else:
        lines.append(f"no training ({value['state']}): {value['reason']}")
    return "\n".join(lines)
