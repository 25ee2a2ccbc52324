"""A site in which much has happened: store, runs, decisions, batches, a maintenance; no server."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.site import SiteConfig
from storage.documents.promotion import Action, Decision
from storage.documents.snapshot import HistoryEntry
from storage.documents.upkeep import Damage, Place, Removal, Upkeep
from storage.files import sha256_bytes
from storage.inbox_ledger import Ledger
from storage.numbered import Numbered
from storage.snapshots import history
from storage.volume_store import VolumeStore
from tests.factories import make_store, run_document

BEGAN = datetime(2026, 1, 5, 9, tzinfo=UTC)


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")


def make_site(root: Path, *, troubled: bool = True) -> SiteConfig:
    """Fill the current folder with a site; `troubled`: with a held batch, a failed run, damage."""
    os.chdir(root)
    place = root / ".prdit"
    make_store(place / "store")
    grow(place / "store")
    work = place / "work"
    run(work, "20261102T020000.000000Z", None)
    run(
        work,
        "20261109T020000.000000Z",
        "GateError: anatomy_pass_share is 0.2; at least 0.5 is wanted" if troubled else None,
    )
    decide(work, "promoted", 1, 40, "Promoted: there is no champion yet, and its gates are met.")
    decide(
        work,
        "held",
        2,
        3,
        "Held: its held-out loss is higher by 0.004 [0.001, 0.007] per volume of the frozen reference.",
    )
    batches(place / "arrivals", troubled)
    maintained(work, troubled)
    return SiteConfig()


def grow(store: Path) -> None:
    """Steps of the history, a week apart, of a store that would have grown."""
    steps = history(store)
    newest = steps.newest()
    assert newest is not None
    newest.model_copy(update={"created": BEGAN.isoformat(timespec="seconds")}).write(steps.path(steps.numbers()[-1]))
    for week in range(1, 30):
        entry = HistoryEntry(
            snapshot=newest.snapshot,
            change="ingest: 4 new",
            created=(BEGAN + timedelta(weeks=week)).isoformat(timespec="seconds"),
            num_volumes=3 + 4 * week,
            num_patients=3 + 3 * week,
            withdrawn=(),
            patients_by={},
            labels_by={},
            identified_by={},
        )
        entry.put(steps.path(steps.numbers()[-1] + 1))
    VolumeStore.open(store)


def run(work: Path, name: str, error: str | None) -> None:
    document = run_document(seconds=4210.0, gates={"anatomy_pass_share": 0.2 if error else 0.9}, error=error)
    document.save_run(work / "runs" / name)


def decide(work: Path, action: Action, version: int, days: float, reason: str) -> None:
    Numbered(work / "decisions", Decision).update(
        lambda _: Decision(
            action=action,
            reason=reason,
            champion=1,
            champion_before=None,
            challenger=version,
            checkpoint=f"sha256:{sha256_bytes(bytes([version]))}",
            by="policy default",
            created=ago(days),
            figures={"loss": {"value": 0.1234, "low": 0.11, "high": 0.14}, "anatomy": 0.9, "patients": 80},
        )
    )


def batches(arrivals: Path, troubled: bool) -> None:
    ledger = Ledger(arrivals)
    states = ["listed", "listed", "held" if troubled else "listed"]
    for number, state in enumerate(states, start=1):
        reason = (
            "hu_shift: the median of lung is 200 HU above that of the store; 60 HU are allowed"
            if state == "held"
            else ""
        )
        ledger.database.run(
            "INSERT INTO batches (state, created, reason, volumes, released, series) VALUES (?, ?, ?, '[]', 0, 4)",
            (state, ago(10 - number), reason),
        )
    ledger.close()


def maintained(work: Path, troubled: bool) -> None:
    damage = (
        (Damage(kind="volume", name="6f1c0a97", message="a chunk of level 0 has another checksum"),) if troubled else ()
    )
    Upkeep(
        created=ago(2),
        verified=119,
        verified_at=ago(2),
        damage=damage,
        removed=(Removal(what="stage sample", count=3, size_bytes=4_200_000_000),),
        places=(Place(name="store", size_bytes=7_100_000_000), Place(name="stages", size_bytes=2_900_000_000)),
        free_bytes=80_000_000_000,
        min_free_bytes=5_000_000_000,
    ).save(work)
