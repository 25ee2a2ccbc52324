"""Ingest members of the corpus and compare what came out with what is right."""

import itertools
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.documents.verdicts import Entry, IngestReport
from storage.errors import SourceError
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.corpus.member import Expect, Member, Place, outcome_label, reasons_problem
from tests.corpus.world import Compared, Truth, World, compare

SETTINGS: dict[str, Any] = {"spacing_mm": 4.0, "num_levels": 1}  # every limit is the default


@dataclass
class Outcome:
    """One member of one seed.

    Attributes:
        expected, got: labels of the confusion matrix.
        problems: what is not right; empty where all is.
        compared: the volumes against their truths.
        messages: sentences of what was left out.
        seconds: of the ingest; peak_mb: of this process so far.
    """

    name: str
    kind: str
    owner: str
    seed: int
    expected: str
    got: str
    problems: list[str]
    compared: list[Compared] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_mb: int = 0


def config_of(expect: Expect) -> IngestConfig:
    """Settings of a member: the default limits but for those that it is about."""
    return IngestConfig(**SETTINGS | expect.config)


def run_member(member: Member, world: World, root: Path) -> Outcome:
    """Write one member, ingest it alone, and compare; what was written is removed."""
    source, store = root / "source", root / "store"
    source.mkdir(parents=True)
    expect = member.write(Place(source / member.name, world, member.name))
    began = time.monotonic()
    try:
        report: IngestReport | None = ingest(source, store, config_of(expect), runner=Local(1))
        codes, messages = left_out(report) if report else (Counter[str](), [])
    except SourceError as error:  # nothing but what is no CT
        report, messages = None, [str(error)]
        codes = Counter(dict.fromkeys(re.findall(r"\d+ (\w+)", str(error).split(":")[-1]), 1))
        for number, code in re.findall(r"(\d+) ([a-z_]+)", str(error)):
            codes[code] = int(number)
    seconds = time.monotonic() - began
    used = [*report.committed, *report.unchanged] if report else []
    got = outcome_label(len(used), sorted(codes))
    opened = VolumeStore.open(store) if report else None
    tried = []
    for one in (expect, *expect.alternatives):
        tried.append(_judged(one, used, codes, messages, report.notes if report else [], opened))
        if not tried[-1][0]:
            break
    problems, compared = tried[0] if tried[-1][0] else tried[-1]
    label = " or ".join(one.label for one in (expect, *expect.alternatives)) if problems else got
    shutil.rmtree(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return Outcome(
        member.name,
        member.kind,
        member.owner,
        world.seed,
        label,
        got,
        problems,
        compared,
        messages,
        round(seconds, 2),
        peak,
    )


def left_out(report: IngestReport) -> tuple[Counter[str], list[str]]:
    """How often which code was given, and the sentences."""
    entries: list[Entry] = [*report.skipped, *report.quarantined]
    return Counter(str(entry.reason) for entry in entries), [str(entry.message) for entry in entries]


def _judged(
    expect: Expect,
    used: list[Entry],
    codes: Counter[str],
    messages: list[str],
    notes: list[str],
    store: VolumeStore | None,
) -> tuple[list[str], list[Compared]]:
    problems = [problem] if (problem := reasons_problem(expect.reasons, codes)) else []
    if expect.detail and not all(re.search(expect.detail, message) for message in messages):
        problems.append(f"a sentence does not match {expect.detail!r}: {messages}")
    problems += [
        f"no note matches {wanted!r}: {notes}"
        for wanted in expect.notes
        if not any(re.search(wanted, note) for note in notes)
    ]
    if len(used) != len(expect.volumes):
        return [*problems, f"{len(used)} volume(s), expected {len(expect.volumes)}"], []
    if store is None or not used:
        return problems, []
    compared = compared_volumes(store, used, expect.volumes)
    return [*problems, *(problem for one in compared for problem in one.problems)], compared


def compared_volumes(store: VolumeStore, used: Sequence[Entry], truths: Sequence[Truth]) -> list[Compared]:
    """Volumes against as many truths, whichever way round they fit best."""
    table = [[_checked(store, entry, truth) for truth in truths] for entry in used]
    orders = itertools.permutations(range(len(used)))
    best = min(orders, key=lambda order: sum(len(table[k][t].problems) for k, t in enumerate(order)))
    return [table[k][t] for k, t in enumerate(best)]


def _checked(store: VolumeStore, entry: Entry, truth: Truth) -> Compared:
    record = store.commit_record(str(entry.volume_id))
    found = compare(store.read_level(record.volume_id), truth)
    assert record.scan is not None
    if record.scan.num_duplicates != truth.num_duplicates:
        found.problems.append(f"{record.scan.num_duplicates} duplicates counted, expected {truth.num_duplicates}")
    if truth.completeness and record.scan.completeness != truth.completeness:
        found.problems.append(f"completeness {record.scan.completeness}, expected {truth.completeness}")
    num_slices = len(truth.geometry.positions if truth.positions is None else truth.positions)
    if record.scan.num_slices != num_slices:
        found.problems.append(f"{record.scan.num_slices} slices counted, expected {num_slices}")
    return found
