"""The first half of a retraining: batches of new scans into the store, past the drift gate."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from flows.notify import notify
from flows.retrain_setup import Setup
from flows.room import make_room
from storage.errors import NoScansError, NothingUsableError, SourceError
from storage.files import write_bytes_atomic
from storage.inbox_database import NAME as LEDGER
from storage.inbox_ledger import PICTURES, Batch, Ledger
from storage.privacy import without_folder
from storage.snapshots import load_snapshot
from tasks.drift.gate import DriftVerdict, HeldError, gate
from tasks.inbox.batches import take_batch
from tasks.ingest.stage import ingest_stage
from tasks.run.private import without_paths
from tasks.run.stage import RunContext
from tasks.run.task import as_state, publish_table, task_progress

_STAYS_OPEN = (
    "Tables are copied from the inbox: correct them there. Batch {number} stays open: the next run tries it again."
)
logger = logging.getLogger("prdit.retrain")


@dataclass
class Taken:
    """What became of the batches of a run.

    Attributes:
        listed, held: numbers of batches.
        sentences: on each.
    """

    listed: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Held:
    """Why a batch is held."""

    reason: str
    volumes: tuple[str, ...] = ()
    verdict: DriftVerdict | None = None


def take_batches(setup: Setup) -> Taken:
    """Ingest every batch that is open or can be made of complete series, one after the other.

    A batch that an ended process left open is ingested again, which changes nothing where it was done already.

    Raises: StorageError, SourceError: inbox, ledger, store or disk cannot be used; the batch stays open.
    """
    taken = Taken()
    if not setup.inbox.is_dir() and not (setup.arrivals / LEDGER).exists():
        logger.info("there is no inbox at %s, and no batch of it", setup.inbox)
        return taken
    ledger = Ledger(setup.arrivals)
    try:
        while (batch := _next_batch(ledger, setup)) is not None:
            _settle(ledger, batch, setup, taken)
    finally:
        ledger.close()
    return taken


def _next_batch(ledger: Ledger, setup: Setup) -> Batch | None:
    @task(name="take batch", persist_result=False, cache_policy=NO_CACHE)
    def take() -> Any:
        batch = take_batch(ledger, setup.inbox, timing=setup.timing)
        message = "nothing is complete" if batch is None else f"batch {batch.number}: {batch.num_series} series"
        return Completed(message=message, data=[batch])  # Prefect takes None for a result that is missing

    state: Any = take(return_state=True)
    batch: Batch | None = state.result()[0]
    return batch


def _settle(ledger: Ledger, batch: Batch, setup: Setup, taken: Taken) -> None:
    make_room(setup.config, setup.site)
    before = _listed(setup)
    held = _ingested(batch, setup)
    if held is None:
        new = sorted(_listed(setup) - before)
        ledger.set_batch(batch.number, "listed", volumes=tuple(new))
        taken.listed.append(batch.number)
        taken.sentences.append(f"Batch {batch.number} ({batch.num_series} series): {len(new)} new volume(s) listed.")
        return
    _show(ledger, batch, held)
    ledger.set_batch(batch.number, "held", reason=held.reason, volumes=held.volumes)
    taken.held.append(batch.number)
    taken.sentences.append(f"Batch {batch.number} is held: {held.reason}")


def _ingested(batch: Batch, setup: Setup) -> _Held | None:
    """Ingest one batch; why it is held, or None where its volumes are listed.

    Raises: SourceError: a table or the patient-key file cannot be used, which says nothing of its scans.
    """
    context = RunContext(workdir=setup.workdir)
    admit = None if batch.released else gate(setup.policy.drift)

    @task(name="ingest", persist_result=False, cache_policy=NO_CACHE)
    def ingest() -> Any:
        with without_paths(str(batch.folder)), task_progress("ingest") as progress:
            try:
                outcome = ingest_stage(
                    batch.folder,
                    setup.store,
                    setup.config.ingest,
                    context,
                    progress,
                    runner=setup.config.runner,
                    publish=lambda rows: publish_table("ingest", rows),
                    admit=admit,
                )
            except HeldError as held:
                return Completed(name="Held", message=str(held), data=_Held(str(held), held.volumes, held.verdict))
            except (NothingUsableError, NoScansError) as error:
                reason = f"nothing in it can be used: {without_folder(str(error), str(batch.folder))}"
                return Completed(name="Held", message=reason, data=_Held(reason))
            except SourceError as error:  # not of its scans: a table, or the patient-key file
                text = without_folder(str(error), str(batch.folder))
                raise SourceError(f"{text} {_STAYS_OPEN.format(number=batch.number)}") from error
            return as_state(outcome)

    state: Any = ingest(return_state=True)
    found = state.result()
    return found if isinstance(found, _Held) else None


def _listed(setup: Setup) -> set[str]:
    snapshot = setup.snapshot()
    return set(load_snapshot(snapshot).volumes) if snapshot else set()


def _show(ledger: Ledger, batch: Batch, held: _Held) -> None:
    """Keep the picture of a held batch beside the ledger, and say on the run's page where it is, with the reason.

    The page has no voxels: nobody would take those of a forgotten patient out of Prefect's database.
    """
    lines = [f"**Batch {batch.number} is held** ({batch.num_series} series)", "", held.reason, ""]
    if held.verdict and held.verdict.picture:
        picture = picture_of(ledger.folder, batch.number)
        write_bytes_atomic(picture, held.verdict.picture)
        lines += [f"What was compared: picture `{picture}`", ""]
    if held.verdict:
        lines += [f"- {note}" for note in held.verdict.notes]
    lines += ["", f"Decide: `prdit inbox release {batch.number}` or `prdit inbox reject {batch.number}`."]
    try:
        create_markdown_artifact(key=f"prdit-batch-{batch.number}", markdown="\n".join(lines))
    except Exception as error:  # noqa: BLE001  # a page must never end a retraining
        logger.warning("the reasons for batch %d are not on the run's page: %s", batch.number, error)


def picture_of(arrivals: Path, number: int) -> Path:
    """File of the picture of a held batch."""
    return arrivals / PICTURES / f"{number:06d}.png"


def notify_held(setup: Setup, taken: Taken) -> None:
    """A message on what is held; for runs whose own end does not say so."""
    if taken.held:
        numbers = ", ".join(map(str, taken.held))
        text = f"New scans are held for a person: batch {numbers}. `prdit inbox ls` says why, and how to decide."
        notify(setup.site.notify, "attention", "retrain: new scans are held", text)
