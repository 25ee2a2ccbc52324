"""Every member of the corpus in the world of seed 0: most in one source, the others alone; `make drills` runs all alone, all seeds.

In one source a member must give what it gives alone: no scan changes what becomes of its neighbours.
"""

import logging
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from storage.documents.verdicts import Entry, IngestReport
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.corpus.member import Expect, Member, Place, reasons_problem
from tests.corpus.members import MEMBERS, counts
from tests.corpus.run import SETTINGS, compared_volumes, left_out, run_member
from tests.corpus.world import WORLDS, Truth

FAST = [one for one in MEMBERS.values() if not one.slow]


@dataclass
class Together:
    """The members that were ingested from one source.

    Attributes:
        source, store: where.
        report: of the first ingest.
        truths: right volumes by the scan they are of.
        reasons: codes that are right.
        alone: members that are ingested alone: they have settings of their own, several right outcomes, or ids that only ingest
            knows.
    """

    source: Path
    store: Path
    report: IngestReport | None = None
    truths: dict[str, list[Truth]] = field(default_factory=lambda: defaultdict(list))
    reasons: list[str] = field(default_factory=list)
    alone: list[Member] = field(default_factory=list)


pytestmark = pytest.mark.timeout(600)  # of a fixture too, where other work shares the machine


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _fits(member: Member, expect: Expect) -> bool:
    known = all(truth.scan for truth in expect.volumes)
    return known and not (member.alone or expect.config or expect.alternatives)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    root = tmp_path_factory.mktemp("together")
    found = Together(root / "source", root / "store")
    logging.disable(logging.CRITICAL)
    extra_hu = 0.0
    for one in FAST:
        # Their HU differ by a constant: equal scans are kept once, and few are left that are equal.
        place = Place(found.source / one.name, replace(WORLDS[0], extra_hu=extra_hu), one.name)
        expect = one.write(place)
        if not _fits(one, expect):
            shutil.rmtree(place.folder)
            found.alone.append(one)
            continue
        extra_hu -= bool(expect.volumes)
        for truth in expect.volumes:
            found.truths[truth.scan].append(truth)
        found.reasons += expect.reasons
    found.report = ingest(found.source, found.store, IngestConfig(**SETTINGS), runner=Local(1))
    logging.disable(logging.NOTSET)
    yield found
    shutil.rmtree(root)


def test_corpus_has_every_kind_of_the_table() -> None:
    found = counts()
    assert found["broken"] >= 60
    assert found["good"] >= 25
    with_members = {member.kind for member in MEMBERS.values()}
    of_two_ingests = {"14", "22"}  # tests/corpus/test_again.py
    assert {str(number) for number in range(1, 24)} - with_members == of_two_ingests


def test_codes_in_one_source(together: Together) -> None:
    assert together.report is not None
    codes, _ = left_out(together.report)
    kept_once = codes.pop("duplicate_volume", 0)
    assert reasons_problem(tuple(together.reasons), codes) == ""
    assert len(together.report.committed) + kept_once == sum(len(truths) for truths in together.truths.values())
    assert len({entry.volume_id for entry in together.report.committed}) == len(together.report.committed) > 100
    assert kept_once <= 20


def test_volumes_in_one_source(together: Together) -> None:
    assert together.report is not None
    store = VolumeStore.open(together.store)
    by_scan: dict[str, list[Entry]] = defaultdict(list)
    for entry in together.report.committed:
        by_scan[str(entry.series_uid).partition(" ")[0]].append(entry)
    wrong = {}
    for scan, entries in by_scan.items():
        truths = together.truths.get(scan, [])
        if len(truths) != len(entries):  # else the others are named as kept once, which the codes count
            wrong[scan] = [f"{len(entries)} volumes, expected {len(truths)}"]
        elif problems := [p for one in compared_volumes(store, entries, truths) for p in one.problems]:
            wrong[scan] = problems
    assert wrong == {}


def test_a_second_ingest_changes_nothing(together: Together) -> None:
    assert together.report is not None
    again = ingest(together.source, together.store, IngestConfig(**SETTINGS), runner=Local(1))
    assert again.snapshot == together.report.snapshot
    assert (again.committed, len(again.unchanged)) == ([], len(together.report.committed))
    before, after = (left_out(report)[0] for report in (together.report, again))
    assert before - Counter(duplicate_volume=before["duplicate_volume"]) == after - Counter(
        duplicate_volume=after["duplicate_volume"]
    )


def test_the_others_alone(together: Together, tmp_path: Path) -> None:
    assert len(together.alone) > 40
    outcomes = [run_member(one, WORLDS[0], tmp_path / one.name) for one in together.alone]
    assert {one.name: one.problems for one in outcomes if one.problems} == {}
