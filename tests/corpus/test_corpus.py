"""Every member of the corpus in the world of seed 0, alone and all in one source; `make drills` runs all seeds."""

import logging
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tests.corpus.member import Member, Place, reasons_problem
from tests.corpus.members import MEMBERS, counts
from tests.corpus.run import SETTINGS, left_out, run_member
from tests.corpus.world import WORLDS, Truth

FAST = [one for one in MEMBERS.values() if not one.slow]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    warnings.simplefilter("ignore")


def test_corpus_has_every_kind_of_the_table() -> None:
    found = counts()
    assert found["broken"] >= 60
    assert found["good"] >= 25
    with_members = {member.kind for member in MEMBERS.values()}
    of_two_ingests = {"14", "22"}  # tests/corpus/test_again.py
    assert {str(number) for number in range(1, 24)} - with_members == of_two_ingests


@pytest.mark.parametrize("member", FAST, ids=lambda member: member.name)
def test_verdict_and_values(member: Member, tmp_path: Path) -> None:
    assert run_member(member, WORLDS[0], tmp_path / "run").problems == []


def test_all_in_one_source_as_each_alone(tmp_path: Path) -> None:
    """No member changes what becomes of another: the codes and the volumes of all are those of each."""
    config = IngestConfig(**SETTINGS)
    truths: list[Truth] = []
    reasons: list[str] = []
    for number, one in enumerate(FAST):
        # Their HU differ by a constant: equal scans are kept once, and few are left that are equal.
        place = Place(tmp_path / "source" / one.name, replace(WORLDS[0], extra_hu=-float(number)), one.name)
        expect = one.write(place)
        if one.alone or expect.config or expect.alternatives:
            shutil.rmtree(place.folder)
            continue
        truths += expect.volumes
        reasons += expect.reasons
    report = ingest(tmp_path / "source", tmp_path / "store", config)
    codes, _ = left_out(report)
    kept_once = codes.pop("duplicate_volume", 0)
    assert reasons_problem(tuple(reasons), codes) == ""
    assert len(report.committed) + kept_once == len(truths)
    assert len({entry.volume_id for entry in report.committed}) == len(report.committed) > 150
    again = ingest(tmp_path / "source", tmp_path / "store", config)
    assert (again.snapshot, again.committed, len(again.unchanged)) == (report.snapshot, [], len(report.committed))
    assert reasons_problem(tuple(reasons), left_out(again)[0] - Counter(duplicate_volume=kept_once)) == ""
