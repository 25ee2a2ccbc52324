"""The flow `maintenance`: verify the store, remove what retention does not keep, measure the disk, say what a person must know."""

import logging
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext

from flows.hooks import ATTENDED, DAY_S, attended
from flows.installation import SiteChoice, installation, mlflow_address, mlflow_backend, site_config
from flows.notify import notify
from flows.site import SiteConfig, load_site
from storage.documents.upkeep import Removal, Upkeep
from storage.errors import StorageError
from storage.outbox import RefusedError, ServerAwayError
from storage.verdicts import counted
from tasks.maintain.config import RetentionConfig
from tasks.maintain.run import Installation, last_verified, prune, record, verify
from tasks.run.progress import Advance, show_progress

_GB = 1e9
_SHOWN = 20  # ids in a message; the record has all
logger = logging.getLogger("prdit.maintain")


class DamageError(StorageError, RuntimeError):
    """Maintenance is complete, and found what is damaged or lost."""


@flow(name="maintenance", timeout_seconds=2 * DAY_S, **ATTENDED)
def maintenance(
    configuration: SiteChoice = "",
    store: str = "",
    overrides: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
) -> dict[str, Any]:
    """Check every byte of the store, remove what retention does not keep, and report disk and findings.

    Args:
        configuration: Named configuration whose store and working folder are looked after. Empty: the site's (.prdit/site.yaml).
        store: Folder of the volume store. Empty: the site's.
        overrides: Settings that differ from the configuration, such as {"workdir": "/data/work"}.
    """
    with attended():
        site = load_site()
        config = site_config(site, configuration, store, overrides)
        uri = mlflow_address()
        place = installation(config, site, uri)
        with show_progress("verify") as progress:
            found = maintain(place, site.retention, uri, progress)
        if FlowRunContext.get() is not None:
            create_table_artifact(key="prdit-maintenance", table=table(found), description=summary(found))
        tell(site, found)
        if found.damage:
            raise DamageError(damage_text(found))
        return found.to_json()


def maintain(
    place: Installation,
    retention: RetentionConfig,
    tracking_uri: str | None,
    progress: Advance | None = None,
    *,
    verified: bool = True,
) -> Upkeep:
    """One maintenance; its record is also in the working folder.

    Args:
        place: what is looked after.
        retention: what is kept.
        tracking_uri: of MLflow; None: its runs are left alone.
        progress: called with (volumes checked, total).
        verified: whether the store is verified, too; else what the last verification found still stands.
    """
    notes: list[str] = []
    found = verify(place.store, notes, progress) if verified else last_verified(place.workdir)
    removed = prune(place, retention, notes)
    if tracking_uri:
        removed += prune_tracking(place, retention, tracking_uri, notes)
    return record(place, retention, verified=found, removed=removed, notes=notes)


def prune_tracking(
    place: Installation, retention: RetentionConfig, tracking_uri: str, notes: list[str]
) -> list[Removal]:
    """Remove MLflow's runs of this installation that are not kept; what could not be done is a note."""
    from storage.mlflow_server import Server
    from tasks.maintain.tracking import empty_trash, old_runs, run_of_each_experiment, runs_of_newest, trash

    if place.versions is None:
        notes.append("MLflow does not answer, so that none of its runs was removed")
        return []
    try:
        which = place.checkpoints(retention)
        kept = runs_of_newest(place.workdir, retention.keep_runs)
        kept |= {version.run_id for version in place.versions if version.checkpoint.digest in which.kept}
        server = Server(tracking_uri)
        old = old_runs(
            server,
            retention.server_days,
            experiment=place.experiment,
            beside=run_of_each_experiment(place.workdir),
            kept_runs=kept,
            kept_digests=set(which.kept),
        )
        trash(server, old)
    except (ServerAwayError, RefusedError, StorageError) as error:
        notes.append(f"MLflow's old runs were not removed: {error}")
        return []
    backend, artifacts = mlflow_backend(tracking_uri, place.services)
    if problem := empty_trash(tracking_uri, backend, artifacts, retention.trash_days):
        notes.append(problem)
    return [Removal(what="run of MLflow, into its trash", count=len(old.runs), size_bytes=0)] if old.runs else []


def tell(site: SiteConfig, found: Upkeep) -> None:
    """Send messages about what needs a person; nothing where there is nothing."""
    if found.damage:
        notify(site.notify, "failure", f"{counted(len(found.damage), 'finding')} in the store", damage_text(found))
    if found.is_low:
        notify(site.notify, "attention", "little disk is free", disk_text(found))


def damage_text(found: Upkeep) -> str:
    """What is damaged, by id, and what to do."""
    named = ", ".join(f"{each.kind} {each.name}" for each in found.damage[:_SHOWN])
    more = f" and {len(found.damage) - _SHOWN} more" if len(found.damage) > _SHOWN else ""
    return (
        f"Damaged or lost: {named}{more}. `prdit verify STORE` shows each; `prdit ingest SOURCE --store STORE --repair` writes "
        "again what the source still has."
    )


def disk_text(found: Upkeep) -> str:
    """How much is free, and what takes most."""
    largest = sorted(found.places, key=lambda place: -place.size_bytes)[:3]
    takes = ", ".join(f"{place.name} {place.size_bytes / _GB:.1f} GB" for place in largest)
    return (
        f"{found.free_bytes / _GB:.1f} GB are free, {found.min_free_bytes / _GB:g} GB should be (retention.min_free_gb): no flow "
        f"starts work that writes. Largest: {takes}. Keep less (retention in .prdit/site.yaml), or add disk."
    )


def summary(found: Upkeep) -> str:
    """A line about a maintenance."""
    checked = "no store was checked" if found.verified is None else f"{found.verified} volumes checked"
    freed = sum(each.size_bytes for each in found.removed) / _GB
    return f"{checked}, {len(found.damage)} findings; {freed:.2f} GB removed, {found.free_bytes / _GB:.1f} GB free"


def table(found: Upkeep) -> list[dict[str, Any]]:
    """Rows for Prefect's page: opaque ids only."""
    rows: list[dict[str, Any]] = [
        {"what": f"damaged: {each.kind}", "which": each.name, "GB": None} for each in found.damage
    ]
    rows += [
        {"what": f"removed: {each.what}", "which": str(each.count), "GB": round(each.size_bytes / _GB, 3)}
        for each in found.removed
    ]
    rows += [
        {"what": f"takes: {each.name}", "which": "", "GB": round(each.size_bytes / _GB, 3)} for each in found.places
    ]
    rows.append({"what": "free disk", "which": "", "GB": round(found.free_bytes / _GB, 1)})
    rows += [{"what": "unfinished stage, nobody works on it", "which": each, "GB": None} for each in found.unfinished]
    return rows
