"""What an installation is doing and what needs a person: read from files, and from the servers where they answer.

Nothing here changes anything, and no part needs another: what cannot be read is said in its place.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.installation import mlflow_address, opened_ledger, site_config
from flows.maintenance import damage_text, disk_text
from flows.servers import Services, call_api, is_healthy
from flows.services import DEFAULT_STATE_DIR, processes, started
from flows.site import SiteConfig, load_site
from flows.status_needs import needs_person
from storage.documents.run_record import RunDocument
from storage.documents.upkeep import Upkeep
from storage.errors import MissingArtifactError, StorageError, UserError
from storage.places import as_place
from storage.registry import CHALLENGER, CHAMPION, PATIENTS, ModelVersion, Registry
from storage.snapshots import history
from tasks.maintain.disk import free_bytes
from tasks.retrain.decisions import decisions
from tasks.run.printable import one_line

SHOWN = 10  # runs, decisions, batches
_DAYS = 14  # flow runs that are looked at
_REJECTED = re.compile(r"an association of .* was rejected: .*")
_LOG_BYTES = 1 << 18  # end of a log that is read
Part = dict[str, Any]


def status(site: SiteConfig | None = None) -> Part:
    """Everything, as JSON values; `needs_person` first."""
    found = site or load_site()
    config = site_config(found)
    workdir, store = Path(config.workdir), as_place(config.store)
    parts: dict[str, Callable[[], Part]] = {
        "services": services,
        "runs": lambda: runs(workdir),
        "flow_runs": flow_runs,
        "store": lambda: store_growth(store),
        "model": lambda: model(workdir),
        "inbox": lambda: inbox(found),
        "disk": lambda: disk(found, workdir),
    }
    value: Part = {name: _read(part) for name, part in parts.items()}
    head = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": str(Path.cwd()),
        "configuration": found.configuration,
        "policy": found.policy,
        "store_folder": str(store),
        "workdir": str(workdir),
        "needs_person": needs_person(value, store),
    }
    return head | value


def _read(part: Callable[[], Part]) -> Part:
    try:
        return {"problem": ""} | part()
    except (UserError, OSError) as error:
        return {"problem": one_line(str(error))}


# ---- parts -----------------------------------------------------------------------------------------------------------------


def services() -> Part:
    """Which services run; servers that the environment names, too."""
    found, elsewhere = started(DEFAULT_STATE_DIR), _elsewhere()
    rows = []
    if found is None and elsewhere:
        for name in ("prefect", "mlflow"):
            healthy = is_healthy(elsewhere, name)
            rows.append({"name": name, "state": "up" if healthy else "does not answer", "up": healthy, "detail": ""})
    elif found:
        for name, info in processes(found).items():
            up = info["statename"] in ("RUNNING", "STARTING")
            healthy = up and (name not in ("prefect", "mlflow") or is_healthy(found, name))
            state = "up" if healthy else "does not answer" if up else info["statename"].lower()
            rows.append({"name": name, "state": state, "up": healthy, "detail": info.get("description", "")})
    known = found or elsewhere
    return {
        "running": bool(known),
        "services": rows,
        "prefect_page": known.prefect_ui_url if known else None,
        "mlflow_page": known.mlflow_url if known else None,
        "rejected_senders": _rejected_senders(DEFAULT_STATE_DIR / "logs" / "listener.log"),
    }


def _elsewhere() -> Services | None:
    """Servers that the environment names: those of systemd units, of containers, of another machine."""
    prefect, mlflow = os.environ.get("PREFECT_API_URL", ""), os.environ.get("MLFLOW_TRACKING_URI", "")
    if not (prefect.startswith("http") and mlflow.startswith("http")):
        return None
    return Services(
        state_dir=DEFAULT_STATE_DIR, prefect_ui_url=prefect.rstrip("/").removesuffix("/api"), mlflow_url=mlflow
    )


def _rejected_senders(log: Path) -> Part | None:
    """How often the listener rejected a sender, in the end of its log, and the last time; None: never."""
    with suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if _REJECTED.search(line)]
        if lines:
            return {"count": len(lines), "last": one_line(lines[-1])}
    return None


def runs(workdir: Path) -> Part:
    """The newest runs by their records, newest first; one without a record goes on, or its process died."""
    rows = []
    for folder in sorted((path for path in (workdir / "runs").glob("*") if path.is_dir()), reverse=True)[:SHOWN]:
        row: Part = {"name": folder.name, "began": _stamp_time(folder.name), "state": "no record", "error": None}
        with suppress(MissingArtifactError):
            record = RunDocument.load(folder)
            row |= {
                "state": "failed" if record.error else "completed",
                "error": record.error and one_line(record.error),
                "seconds": record.seconds,
                "stages": {
                    name: "cached" if stage.cached else f"{stage.seconds:.0f} s"
                    for name, stage in record.stages.items()
                },
                "gates": record.gates,
                "report": record.report,
                "mlflow_run_id": record.mlflow_run_id,
            }
        rows.append(row)
    return {"runs": rows}


def _stamp_time(name: str) -> str:
    """The time in a run's name."""
    with suppress(ValueError):
        return datetime.strptime(name, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC).isoformat(timespec="seconds")
    return ""


def flow_runs() -> Part:
    """What the Prefect server has of the last two weeks, newest first, and what is scheduled."""
    found = started(DEFAULT_STATE_DIR) or _elsewhere()
    if found is None:
        return {"problem": "the Prefect server of this folder does not run (`prdit up` starts it)"}
    since = (datetime.now(UTC) - timedelta(days=_DAYS)).isoformat()
    flows = {flow["id"]: flow["name"] for flow in call_api(found, "POST", "/flows/filter", {"limit": 50})}
    asked = {"sort": "EXPECTED_START_TIME_DESC", "limit": 100, "flow_runs": {"expected_start_time": {"after_": since}}}
    rows = [
        {
            "name": run["name"],
            "flow": flows.get(run["flow_id"], "?"),
            "state": run["state_name"] or "?",
            "type": run["state_type"],
            "expected": run["expected_start_time"],
            "began": run["start_time"],
            "ended": run["end_time"],
            "seconds": run["total_run_time"],
            "message": one_line((run.get("state") or {}).get("message") or ""),
        }
        for run in call_api(found, "POST", "/flow_runs/filter", asked)
    ]
    late = [row for row in rows if row["type"] == "SCHEDULED"]
    return {"flow_runs": [row for row in rows if row["type"] != "SCHEDULED"], "scheduled": late[::-1][:SHOWN]}


def store_growth(store: Path) -> Part:
    """Volumes and patients over time, from the store's history."""
    if not store.exists():
        return {"steps": [], "volumes": 0, "patients": 0}
    steps = history(store)
    entries = [steps.read(number) for number in steps.numbers()]
    rows = [
        {"created": each.created, "volumes": each.num_volumes, "patients": each.num_patients, "change": each.change}
        for each in entries
    ]
    last = rows[-1] if rows else {"volumes": 0, "patients": 0}
    withdrawn = len(entries[-1].withdrawn) if entries else 0
    return {"steps": rows, "volumes": last["volumes"], "patients": last["patients"], "withdrawn": withdrawn}


def model(workdir: Path) -> Part:
    """Champion and challenger, and the newest decisions."""
    made = decisions(workdir / "decisions")
    value: Part = {"decisions": [each.to_json() for each in made[::-1][:SHOWN]]}
    uri = mlflow_address()
    if uri is None:
        return value | {"champion": None, "challenger": None, "registry": "MLflow does not run (`prdit up` starts it)"}
    try:
        versions = Registry(uri, workdir=workdir).versions()
    except StorageError as error:
        return value | {"champion": None, "challenger": None, "registry": one_line(str(error))}
    value |= {alias: _version(versions, alias) for alias in (CHAMPION, CHALLENGER)}
    by_version = {each.champion: each for each in made if each.action in ("promoted", "rolled back")}
    if value[CHAMPION] and (promoted := by_version.get(value[CHAMPION]["version"])):
        value[CHAMPION] |= {"since": promoted.created, "reason": promoted.reason, "figures": promoted.figures}
    return value | {"registry": "", "num_versions": len(versions)}


def _version(versions: list[ModelVersion], alias: str) -> Part | None:
    for each in versions:
        if alias in each.aliases:
            return {
                "version": each.version,
                "created": each.created,
                "family": each.tags.get("prdit.family", ""),
                "volume_size": each.tags.get("prdit.volume_size", ""),
                "patients": each.tags.get(PATIENTS, ""),
                "checkpoint": each.checkpoint.uri,
                "on_disk": each.checkpoint.path.is_dir(),
                "refused": each.refused,
            }
    return None


def inbox(site: SiteConfig) -> Part:
    """What arrives or waits, and the batches."""
    with opened_ledger(Path(site.inbox.arrivals)) as ledger:
        found = ledger.batches() if ledger else []
        items = ledger.counts() if ledger else {}
    rows = [
        {
            "number": each.number,
            "state": each.state,
            "created": each.created,
            "num_series": each.num_series,
            "num_volumes": len(each.volumes),
            "reason": one_line(each.reason),
            "released": each.released,
        }
        for each in found
    ]
    return {
        "folder": site.inbox.folder,
        "items": items,
        "batches": dict(Counter(each.state for each in found)),
        "held": [row for row in rows if row["state"] == "held"],
        "newest": rows[::-1][:SHOWN],
    }


def disk(site: SiteConfig, workdir: Path) -> Part:
    """Free disk now, and what the last maintenance found."""
    least = int(site.retention.min_free_gb * 1e9)
    free = free_bytes(workdir)
    value: Part = {"free_bytes": free, "min_free_bytes": least, "low": free < least}
    last: Part | None = None
    with suppress(MissingArtifactError):
        found = Upkeep.load(workdir)
        last = found.to_json() | {"damage_text": damage_text(found) if found.damage else ""}
        value["disk_text"] = disk_text(found.model_copy(update={"free_bytes": free, "min_free_bytes": least}))
    return value | {"maintenance": last, "retention": site.retention.model_dump()}
