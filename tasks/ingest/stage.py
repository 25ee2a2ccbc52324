"""Stage ingest: a folder of scans -> volume store, with its verdicts kept as an artifact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.artifacts import Ref
from storage.documents.verdicts import IngestReport, opaque_place
from storage.errors import NothingUsableError, StorageError
from storage.privacy import opaque_id
from storage.snapshots import load_snapshot, newest
from storage.sources.source import as_utf8
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.qc import page_path
from tasks.ingest.report import summary_rows
from tasks.ingest.run import RECIPE, Admit, ingest_scan, open_scan, patient_key_of, verdicts_hold
from tasks.run.progress import Advance
from tasks.run.runners import Runner
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage


def _points(directory: Path) -> list[dict[str, Any]]:
    """How many scans and files have which verdict."""
    return [{"step": 0} | IngestReport.load(directory).counts]


INGEST = Stage("ingest", "verdicts", RECIPE, files=(IngestReport.NAME,), points=_points)


def ingest_stage(
    source: Path,
    store: Path,
    config: IngestConfig,
    context: RunContext,
    progress: Advance,
    *,
    repair: bool = False,
    runner: Runner | None = None,
    publish: Callable[[list[dict[str, Any]]], None] | None = None,
    admit: Admit | None = None,
) -> StageOutcome:
    """Bring a store up to date with a source; the outcome's reference is the snapshot of what the store lists then.

    Args:
        source, store: folders.
        config: grid and limits.
        context: where the run works and reports.
        progress: called with (scans done, total).
        repair: check the store first and write again what is damaged; a cached outcome is not taken.
        runner: where scans are read; default: processes of this machine.
        publish: given the verdicts as rows of a table, without names.
        admit: asked before volumes are listed (`tasks.ingest.run.ingest`); what it raises is raised, and the stage is not done: the
            next ingest of the source lists the volumes, or asks again.

    Raises:
        NothingUsableError: no usable CT in the source, and none in the store; the record of verdicts is written.
        SourceError: see `tasks.ingest.run.open_scan`.
    """

    with open_scan(source, store, config, repair=repair, runner=runner) as (scan, pool):
        key = patient_key_of(store, config)

        def still_valid(directory: Path) -> bool:
            """Verdicts are valid while they are the last on this source, and this store lists what resulted from them."""
            report = IngestReport.load(directory)
            try:
                now = newest(VolumeStore.open(store, config.grid)).digest
                valid = verdicts_hold(scan, store, config)
            except StorageError:
                return False
            return valid and not repair and report.store == opaque_place(store, key) and now == report.snapshot

        def made(directory: Path) -> Ref | None:
            """The snapshot of what the store lists then."""
            digest = IngestReport.load(directory).snapshot
            return Ref(kind="snapshot", uri=str(store.resolve()), digest=digest) if digest else None

        def body(run: StageRun) -> None:
            report = ingest_scan(scan, store, config, pool, progress=progress, repair=repair, admit=admit)
            report.without_paths(key).save(run.directory)

        outcome = run_stage(
            INGEST,
            inputs={
                "source": Ref(kind="source", uri=opaque_id(key, "source", str(source.resolve())), digest=scan.digest)
            },
            config=config.key_fields(),
            context=context,
            body=body,
            still_valid=still_valid,
            made=made,
        )
    report = IngestReport.load(outcome.ref.path)
    if publish:
        publish(summary_rows(report))
    ref = Ref(kind="snapshot", uri=str(store.resolve()), digest=report.snapshot)
    if not report.snapshot or not load_snapshot(ref).volumes:
        found = ", ".join(f"{number} {reason}" for reason, number in report.num_excluded.items())
        raise NothingUsableError(
            f"No usable CT in {as_utf8(str(source))}: {found}. Each item with its reason is in {page_path(store)}; "
            "docs/ingestion.md says what to do about each."
        )
    return outcome.model_copy(update={"ref": ref})
