"""What a person has to do, out of a status: most urgent first, with the command for each."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.verdicts import counted

_VERIFIED_DAYS = 15.0  # the store is checked weekly
_ENDED_BADLY = ("FAILED", "CRASHED")
Part = dict[str, Any]


def needs_person(value: Part, store: Path) -> list[Part]:
    """What a person has to do, most urgent first: `what`, `detail`, `do` (a command, or empty)."""
    found = [*_damaged(value, store), *_disk_low(value), *_services_down(value), *_held_batches(value)]
    found += [*_failed(value), *_refused_champion(value), *_unverified(value), *_rejected(value)]
    titles = {
        "store": "the store",
        "model": "champion and challenger",
        "inbox": "the inbox",
        "runs": "the runs",
        "disk": "the disk",
    }
    for part, title in titles.items():
        if problem := value[part].get("problem"):
            found.insert(0, _need(f"{title} cannot be read", problem, ""))
    return found


def _need(what: str, detail: str, do: str) -> Part:
    return {"what": what, "detail": detail, "do": do}


def _damaged(value: Part, store: Path) -> list[Part]:
    last = value["disk"].get("maintenance")
    if not last or not last["damage"]:
        return []
    what = f"damage in the store: {counted(len(last['damage']), 'finding')}"
    return [_need(what, last["damage_text"], f"prdit verify {store}")]


def _disk_low(value: Part) -> list[Part]:
    if not value["disk"].get("low"):
        return []
    free, least = value["disk"]["free_bytes"] / 1e9, value["disk"]["min_free_bytes"] / 1e9
    text = (
        value["disk"].get("disk_text")
        or f"{free:.1f} GB are free, {least:g} GB should be: no flow starts work that writes."
    )
    return [_need("little disk is free", text, "prdit maintain --no-verify")]


def _services_down(value: Part) -> list[Part]:
    part = value["services"]
    if problem := part.get("problem"):
        return [_need("the services cannot be asked", problem, "prdit doctor")]
    if not part["running"]:
        return [_need("the services do not run", "No scan is taken in, and nothing starts by itself.", "prdit up")]
    down = [row for row in part["services"] if not row["up"]]
    return [_need(f"{row['name']} {row['state']}", row["detail"], "prdit doctor") for row in down]


def _held_batches(value: Part) -> list[Part]:
    return [
        _need(
            f"batch {row['number']} is held: {row['num_series']} series",
            row["reason"],
            f"prdit inbox release {row['number']}   or   prdit inbox reject {row['number']}",
        )
        for row in value["inbox"].get("held", [])
    ]


def _failed(value: Part) -> list[Part]:
    """Flows whose newest run ended badly; without the Prefect server, the newest run by its record."""
    if "flow_runs" in value["flow_runs"]:
        newest: dict[str, Part] = {}
        for row in value["flow_runs"]["flow_runs"]:
            if row["ended"]:
                newest.setdefault(row["flow"], row)
        return [
            _need(f"the last run of {name} {row['state'].lower()}", row["message"], "")
            for name, row in newest.items()
            if row["type"] in _ENDED_BADLY
        ]
    ended = [row for row in value["runs"].get("runs", []) if row["state"] != "no record"]
    if ended and ended[0]["state"] == "failed":
        return [_need(f"the last run failed: {ended[0]['name']}", ended[0]["error"], "")]
    return []


def _refused_champion(value: Part) -> list[Part]:
    champion = value["model"].get("champion")
    if not champion or not champion["refused"]:
        return []
    return [
        _need(
            f"the champion, version {champion['version']}, is marked as refused",
            champion["refused"],
            "prdit models rollback",
        )
    ]


def _unverified(value: Part) -> list[Part]:
    last = value["disk"].get("maintenance")
    if not value["store"].get("steps"):
        return []
    if last is None or last["verified_at"] is None:
        began = datetime.fromisoformat(value["store"]["steps"][0]["created"]).timestamp()
        if time.time() - began < _VERIFIED_DAYS * 86400:
            return []
        return [
            _need("the store was never verified", "The deployment maintenance/verify does it weekly.", "prdit maintain")
        ]
    days = (time.time() - datetime.fromisoformat(last["verified_at"]).timestamp()) / 86400
    if days < _VERIFIED_DAYS:
        return []
    return [
        _need(
            f"the store was last verified {days:.0f} days ago",
            "The deployment maintenance/verify does it weekly.",
            "prdit maintain",
        )
    ]


def _rejected(value: Part) -> list[Part]:
    rejected = value["services"].get("rejected_senders")
    if not rejected:
        return []
    return [_need(f"the listener rejected {rejected['count']} associations", rejected["last"], "prdit site")]
