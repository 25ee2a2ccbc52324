"""Stage ingest: a folder of scans -> volume store, with its verdicts kept as an artifact."""

from pathlib import Path
from typing import Any

from storage.artifacts import Ref
from storage.documents.verdicts import IngestReport, opaque_place
from storage.errors import SourceError, StorageError
from storage.verdicts import REASONS
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import RECIPE, ingest_scan, open_scan
from tasks.run.progress import Advance
from tasks.run.recording import record_store
from tasks.run.stage import RunContext, Stage, StageOutcome, StageRun, run_stage


def _points(directory: Path) -> list[dict[str, Any]]:
    """How many series have which verdict."""
    report = IngestReport.load(directory)
    counts = {name: len(getattr(report, name)) for name in ("committed", "unchanged")}
    counts |= dict.fromkeys(("skipped", "quarantined"), 0)
    for reason, number in report.num_excluded.items():
        counts[REASONS[reason].verdict] += number
    return [{"step": 0} | counts]


INGEST = Stage("ingest", "verdicts", RECIPE, files=(IngestReport.NAME,), points=_points)


def ingest_stage(
    source: Path,
    store: Path,
    config: IngestConfig,
    context: RunContext,
    progress: Advance,
) -> StageOutcome:
    """Bring a store up to date with a source; the outcome's reference is the store at its fingerprint.

    Raises: SourceError: no usable CT in the source, and none in the store.
    """

    def still_valid(directory: Path) -> bool:
        """The verdicts are valid while this store still has the fingerprint that resulted from them."""
        report = IngestReport.load(directory)
        try:
            return report.store == opaque_place(store) and store_ref(store, config).digest == report.fingerprint
        except StorageError:
            return False

    with open_scan(source, store, config) as (scan, pool):

        def body(run: StageRun) -> None:
            report = ingest_scan(scan, store, config, pool, progress=progress)
            report.without_paths().save(run.directory)

        outcome = run_stage(
            INGEST,
            inputs={"source": Ref(kind="source", uri=str(source.resolve()), digest=scan.digest)},
            config=config.key_fields(),
            context=context,
            body=body,
            still_valid=still_valid,
        )
    ref = store_ref(store, config)
    record_store(context, outcome.mlflow_run_id, ref, "ingest")
    if not VolumeStore.open(store).volume_ids():
        report = IngestReport.load(outcome.ref.path)
        found = ", ".join(f"{number} {reason}" for reason, number in report.num_excluded.items())
        raise SourceError(
            f"No usable CT in {source}: {found}. Items with their reasons are in {outcome.ref.path / IngestReport.NAME}."
        )
    return outcome.model_copy(update={"ref": ref})


def store_ref(store: Path, config: IngestConfig) -> Ref:
    """Reference of a store as it is now.

    Raises:
        StoreFormatError: the store has another grid than the configuration's.
        StorageError: there is no readable store.
    """
    opened = VolumeStore.open(
        store, spacing_mm=config.spacing_mm, num_levels=config.num_levels, interpolation=config.interpolation
    )
    return Ref(kind="store", uri=str(store.resolve()), digest=opened.fingerprint())
