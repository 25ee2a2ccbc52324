"""A year of an installation, a week at a time: arrivals, retrainings, decisions, runs of both servers, and the weekly maintenance.

Time is the files' and records' own: a week is made as if it were so long ago, and maintenance sees the clock of that week. What
retention keeps has to stay the same size from the first half of the year to the second; what may grow is measured.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from flows.maintenance import prune_tracking
from storage.artifacts import PROVENANCE, Ref, verify_artifact
from storage.documents.promotion import Action, Decision
from storage.documents.run_record import RunDocument
from storage.documents.snapshot import SnapshotVolume
from storage.files import sha256_json
from storage.inbox_ledger import Ledger
from storage.numbered import Numbered
from storage.registry import ModelVersion
from storage.snapshots import list_all
from storage.volume_store import Volume, VolumeStore
from tasks.maintain import retention, tracking
from tasks.maintain.config import RetentionConfig
from tasks.maintain.run import Installation, prune
from tasks.prune import plan
from tasks.prune.plan import size_of
from tasks.run.stage import StageOutcome
from tests.drills.year_servers import Servers
from tests.unit.tasks.aged_work import DAY_S, Work, age

CONFIG = RetentionConfig(
    keep_runs=4, keep_days=14, keep_champions=2, challenger_days=14, log_days=30, server_days=60, trash_days=0
)
PROMOTED_EVERY = 4  # weeks
SERIES, IMAGES = 20, 100  # per week
SIZES = {"train-global": 300_000, "sample": 150_000, "evaluate": 20_000}


class Week:
    """The clock of a week that lies some days back."""

    def __init__(self, days: float) -> None:
        self.days = days

    def time(self) -> float:
        return time.time() - self.days * DAY_S

    def now(self, zone: tzinfo | None = None) -> datetime:
        return datetime.fromtimestamp(self.time(), zone or UTC)

    fromisoformat = staticmethod(datetime.fromisoformat)

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Maintenance sees this clock."""
        with ExitStack() as stack:
            for module in (plan, retention, tracking):
                stack.enter_context(patch.object(module, "time", self))
            stack.enter_context(patch.object(retention, "datetime", self))
            yield


class Site:
    """An installation whose parts are made a week at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = Installation(
            root / "store", root / "work", root / "services", root / "arrivals", root / "errors", [], "prdit"
        )
        self.work = Work(self.place.workdir)
        self.store = VolumeStore.create(self.place.store, spacing_mm=8.0, num_levels=1, interpolation="linear")
        self.ledger = Ledger(self.place.arrivals)
        self.champion: StageOutcome | None = None
        self.split: Ref | None = None

    def arrive(self, number: int, week: Week) -> None:
        """A batch is listed: rows of the ledger as for series of real length, one volume in the store."""
        created = week.now().isoformat(timespec="seconds")
        run, many = self.ledger.database.run, self.ledger.database.many
        columns = "(state, created, reason, volumes, released, series)"
        batch = run(f"INSERT INTO batches {columns} VALUES ('listed', ?, '', '[]', 0, ?)", (created, SERIES))
        for series in range(SERIES):
            item, folder = f"series-{number:06d}{series:06d}", f"{number}/{series}".encode()
            files = [(f"{image:05d}.dcm".encode(), sha256_json([number, series, image])) for image in range(IMAGES)]
            run("INSERT INTO items VALUES (?, 'taken', 'dicom', ?, NULL, 0, 'quiet', ?, 0)", (item, IMAGES, batch))
            rows = [(folder, name, sha, item) for name, sha in files]
            many("INSERT INTO files VALUES (?, ?, 524288, 1, 1, 1, ?, ?, 'dicom', '')", rows)
            many("INSERT INTO contents VALUES (?, ?)", [(sha, batch) for _, sha in files])
            taken = [(batch, item, folder, name, sha) for name, sha in files]
            many("INSERT INTO batch_files VALUES (?, ?, ?, ?, 524288, 1, ?)", taken)
        self.ledger.batch_folder(batch).mkdir(parents=True)
        hu = np.full((8, 8, 8), number, dtype=np.int16)
        name = f"v{number:05d}"
        self.store.write(Volume(hu, (8.0,) * 3, (0.0,) * 3), volume_id=name, attributes={})
        shape = self.store.commit_record(name).shape
        one = SnapshotVolume(patient_key=f"p{number}", patient_known=True, shape=shape, attributes={}, labels={})
        list_all(self.store, {name: one}, "ingest")

    def retrain(self, number: int, week: Week) -> dict[str, StageOutcome]:
        """A challenger that starts with the champion's weights, and what is decided about it."""
        if self.split is None:
            self.split = self.work.stage("split", 0, week.days).ref
        initial = {"initial": self.champion.ref} if self.champion else {}
        days = week.days
        made = self.work.stage("train-global", number, days, SIZES["train-global"], split=self.split, **initial)
        samples = self.work.stage("sample", number, days, SIZES["sample"], checkpoint=made.ref)
        report = self.work.stage("evaluate", number, days, SIZES["evaluate"], samples=samples.ref, split=self.split)
        outcomes = {"train-global": made, "sample": samples, "evaluate": report}
        record = self.work.record(week.now().strftime("%Y%m%dT%H%M%S.%fZ"), **outcomes)
        age(record.parent, week.days)
        action: Action = "promoted" if number % PROMOTED_EVERY == 0 else "held"
        if action == "promoted":
            self.champion = made
        self._decide(action, number, made, week)
        return outcomes

    def versions(self) -> list[ModelVersion]:
        """The registered champion."""
        return [ModelVersion(1, self.champion.ref, "", ("champion",))] if self.champion else []

    def _decide(self, action: Action, number: int, made: StageOutcome, week: Week) -> None:
        Numbered(self.place.workdir / "decisions", Decision).update(
            lambda _: Decision(
                action=action, reason="figures " * 40, champion=1, champion_before=None, challenger=number,
                checkpoint=made.ref.digest, by="policy default", created=week.now().isoformat(timespec="seconds"),
            )
        )  # fmt: skip

    def figures(self) -> dict[str, int]:
        """Sizes and counts that matter."""
        work = self.place.workdir
        stages = list(work.glob(f"*/*/{PROVENANCE}"))
        return {
            "stage_directories": len(stages),
            "stage_bytes": sum(size_of(path.parent) for path in stages),
            "run_records": len(list((work / "runs").glob(f"*/{RunDocument.NAME}"))),
            "batch_folders": len(list((self.place.arrivals / "batches").iterdir())),
            "lineage_bytes": size_of(work / "lineage"),
            "decision_bytes": size_of(work / "decisions"),
            "ledger_bytes": size_of(self.place.arrivals / "ledger.sqlite"),
            "snapshot_bytes": size_of(self.place.store / "snapshots") + size_of(self.place.store / "history"),
        }


BOUNDED = ("stage_directories", "stage_bytes", "run_records", "batch_folders")


def run(root: Path, rounds: int = 1, *, weeks: int = 52, servers: bool = True) -> dict[str, Any]:
    """Live through some weeks; figures of what stays and what grows.

    Args:
        root: empty folder.
        rounds: not used: a year is a year.
        weeks: of it.
        servers: with a real Prefect and a real MLflow server, whose databases are looked at after each quarter.
    Raises: AssertionError: something that retention bounds is larger in the second half, the champion was lost, or a server keeps
        what it should not.
    """
    site, found = Site(root), []
    with Servers(root / "services", CONFIG) if servers else ExitStack() as both:
        quarters = []
        for number in range(weeks):
            week = Week(7.0 * (weeks - 1 - number))
            site.arrive(number, week)
            outcomes = site.retrain(number, week)
            place = Installation(**{**vars(site.place), "versions": site.versions()})
            notes: list[str] = []
            with week.seen():
                prune(place, CONFIG, notes)
            assert not notes, notes
            assert site.champion is not None
            verify_artifact(site.champion.ref)
            found.append(site.figures())
            if isinstance(both, Servers):
                both.live(number, week.time(), outcomes["train-global"].ref.digest)
                if number % 13 == 12 or number == weeks - 1:
                    with week.seen():
                        prune_tracking(place, CONFIG, both.mlflow_uri, notes)
                    assert not notes, notes
                    quarters.append(both.settled(number, week.time(), place.checkpoints(CONFIG).kept))
    half = weeks // 2
    for name in BOUNDED:
        first, second = (max(one[name] for one in part) for part in (found[:half], found[half:]))
        assert second <= 1.02 * first, (name, first, second)  # numbers in records grow longer
    last, per_week = found[-1], {}
    for name in last.keys() - set(BOUNDED):
        per_week[name] = round((last[name] - found[half - 1][name]) / (weeks - half))
    return {
        "weeks": weeks,
        "bounded": {name: {"first_half": max(o[name] for o in found[:half]), "end": last[name]} for name in BOUNDED},
        "grows_bytes_per_week": per_week,
        "per_week": {"series": SERIES, "images": SERIES * IMAGES, "volumes": 1, "retrainings": 1},
        "quarters": quarters,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(run(Path(folder), weeks=int(sys.argv[1]) if len(sys.argv) > 1 else 52)) + "\n")
