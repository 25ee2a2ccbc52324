"""Arrivals as a hospital sends them: out of order, twice, broken off and taken up again, while watcher and flow are killed.

Series arrive file by file, interleaved, in part under temporary names, in part written in two pieces. Some files come again under
the same name or another one, some series break off for a while, some for ever. Nothing wakes the watcher: every event is lost. The
watcher and a process that takes batches and records what was in them, as a retraining would, get SIGKILL again and again.

In the end every complete series was in exactly one batch, whole; of those that were never complete nothing was taken. Of series
whose number of images no list says, every batch had something new, and together they had everything. Last, the batches arrive once
more by a clock that runs faster, and a policy decides after each whether a retraining begins: at most one in a window.
"""

import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from storage.files import sha256_file, write_json_atomic
from storage.inbox_ledger import Ledger
from tasks.inbox.batches import take_batch
from tasks.inbox.config import Timing
from tasks.inbox.watch import Pace, watch
from tasks.retrain.due import Facts, Last, due
from tasks.retrain.policy import RetrainPolicy
from tests.unit.storage.dicom_files import write_series

TIMING = Timing(quiet_s=2.0, association_s=2.0, settle_s=0.2)
PACE = Pace(look_s=0.5, soon_s=0.2, again_s=5.0, events=False)
DEADLINE_S = 900.0
_PACE_S = 0.01  # between two files, so that there is something to kill in between
_ROLES = ("watcher", "taker")
_KILL_AFTER_S = (0.0, 6.0)  # of its work


@dataclass
class Sent:
    """A series that is sent.

    Attributes:
        uid: of it.
        kind: `listed`: a list says how many images it has; `broken`: so it does, and the last ones never come; `quiet`: no list.
        files: content by file name.
    """

    uid: str
    kind: str
    files: dict[str, bytes]


@dataclass
class Plan:
    """Steps of the sender: when (a number to sort by), where, what."""

    steps: list[tuple[float, str, bytes]] = field(default_factory=list)
    num_again: int = 0


def run(root: Path, rounds: int, *, num_series: int = 1000) -> dict[str, Any]:
    """Send so many series while processes are killed, `rounds` times.

    Raises: AssertionError: a series was lost, taken twice or taken in part, or a process outlived its parent.
    """
    chance = random.Random(7)
    inbox = root / "inbox"
    inbox.mkdir()
    (root / "ingested").mkdir()
    series = _series(root, num_series, chance)
    counts = [f"{one.uid},{len(one.files)}" for one in series if one.kind != "quiet"]
    (inbox / "metadata.csv").write_text("\n".join(["Series UID,Number of Images", *counts]) + "\n")
    plan = _plan(series, chance)
    began = time.monotonic()
    killer = _Killer(root, chance, rounds)
    try:
        _send(inbox, plan, chance, killer)
        _wait_for_rest(root, killer, sum(one.kind == "broken" for one in series))
    finally:
        killer.end()
    seconds = time.monotonic() - began
    figures = _check(root, series) | _retrainings(root, chance)
    kinds = Counter(one.kind for one in series)
    return {
        "series": dict(sorted(kinds.items())),
        "files_sent": len(plan.steps),
        "files_sent_again": plan.num_again,
        **figures,
        "killed": dict(sorted(killer.killed.items())),
        "sending_and_taking_s": round(seconds, 1),
    }


# ---- what is sent ------------------------------------------------------------------------------------------------------


def _series(root: Path, number: int, chance: random.Random) -> list[Sent]:
    made = []
    for k in range(number):
        uid = f"1.2.826.{k + 1}"
        folder = root / "originals" / str(k)
        write_series(folder, shape=(chance.randint(2, 5), 4, 4), uid=uid)
        kind = "quiet" if k % 5 == 4 else "broken" if k % 10 == 3 else "listed"
        made.append(Sent(uid, kind, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}))
    return made


def _plan(series: list[Sent], chance: random.Random) -> Plan:
    """Everything that is sent, in an order of its own; what broke off is taken up in the second half."""
    plan = Plan()
    for k, one in enumerate(series):
        names = list(one.files)
        chance.shuffle(names)
        start = chance.random()
        late = chance.randint(1, len(names)) if chance.random() < 0.3 else len(names)
        for place, name in enumerate(names):
            if one.kind == "broken" and place == len(names) - 1:
                break
            # A series without a list comes in one go: what is missing for longer than the quiet period cannot be known.
            when = start + (chance.uniform(0.0, 0.02) if one.kind == "quiet" else chance.uniform(0.0, 0.2))
            when += 1.0 if place >= late and one.kind != "quiet" else 0.0
            path = f"s{k % 7}/{k}/{name}"
            plan.steps.append((when, path, one.files[name]))
            if chance.random() < 0.15:
                again = path if chance.random() < 0.5 else f"again/{k}-{place}.dcm"
                plan.steps.append((when + chance.uniform(0.0, 1.0), again, one.files[name]))
                plan.num_again += 1
    plan.steps.sort(key=lambda step: step[0])
    return plan


def _send(inbox: Path, plan: Plan, chance: random.Random, killer: "_Killer") -> None:
    """Write the files, some under temporary names, some in pieces that others come between."""
    halves: list[tuple[BinaryIO, bytes]] = []
    for _, path, data in plan.steps:
        place = inbox / path
        place.parent.mkdir(parents=True, exist_ok=True)
        way = chance.random()
        if way < 0.3:
            temporary = place.with_name(f".{place.name}.tmp" if way < 0.15 else f"{place.name}.part")
            temporary.write_bytes(data)
            temporary.rename(place)
        elif way < 0.5 and not place.exists():
            stream = place.open("wb")
            stream.write(data[: len(data) // 2])
            stream.flush()
            halves.append((stream, data[len(data) // 2 :]))
        else:
            place.write_bytes(data)
        if len(halves) > 3:
            _finish(halves.pop(0))
        killer.tick()
        time.sleep(_PACE_S)
    for half in halves:
        _finish(half)


def _finish(half: tuple[BinaryIO, bytes]) -> None:
    stream, rest = half
    with stream:
        stream.write(rest)


# ---- who works, and who is killed --------------------------------------------------------------------------------------


class _Killer:
    """Keeps a watcher and a taker running, and kills one of them after the other while they work.

    Args:
        root: of the drill.
        chance: for the moments.
        rounds: so often.
    """

    def __init__(self, root: Path, chance: random.Random, rounds: int) -> None:
        self._root, self._chance, self.left = root, chance, rounds
        self.killed: Counter[str] = Counter()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._victim, self._when = "watcher", 0.0
        self.tick()

    def tick(self) -> None:
        """Start whoever is not running, as a supervisor does; kill one when it is time."""
        for role in _ROLES:
            child = self._children.get(role)
            if child is None or child.poll() is not None:
                assert child is None or child.returncode == -9, f"the {role} ended by itself: {child.returncode}"
                _ready(self._root, role).unlink(missing_ok=True)
                self._children[role] = subprocess.Popen(
                    [sys.executable, "-m", "tests.drills.arrivals", role, str(self._root)]
                )
        if self.left <= 0 or not _ready(self._root, self._victim).exists():
            return
        if not self._when:
            self._when = time.monotonic() + self._chance.uniform(*_KILL_AFTER_S)
        elif time.monotonic() > self._when:
            self._kill(self._victim)
            self.killed[self._victim] += 1
            self.left -= 1
            self._victim, self._when = self._chance.choice(_ROLES), 0.0

    def _kill(self, role: str) -> None:
        child = self._children[role]
        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        child.wait()
        _, alive = psutil.wait_procs(family, 60)
        assert not alive, f"processes outlived the {role}: {alive}"

    def end(self) -> None:
        """Kill both."""
        for role in self._children:
            self._kill(role)


def _wait_for_rest(root: Path, killer: _Killer, num_broken: int) -> None:
    """Until nothing waits any more, and everybody was killed often enough."""
    ledger = Ledger(root / "arrivals")
    deadline = time.monotonic() + DEADLINE_S
    quiet_since = 0.0
    while True:
        assert time.monotonic() < deadline, (ledger.counts(), ledger.batch_counts())
        killer.tick()
        counts = ledger.counts()
        done = not ledger.files.num_unread() and not any(ledger.waiting()) and counts.get("arriving", 0) == num_broken
        quiet_since = (quiet_since or time.monotonic()) if done and counts.get("taken") else 0.0
        if quiet_since and time.monotonic() - quiet_since > 2 * TIMING.quiet_s and killer.left <= 0:
            ledger.close()
            return
        time.sleep(0.1)


def _ready(root: Path, role: str) -> Path:
    """A file that is there while a process works and not only starts."""
    return root / f"{role}.ready"


def _watch(root: Path) -> None:
    _ready(root, "watcher").touch()
    watch(Ledger(root / "arrivals"), root / "inbox", lambda *numbers: True, timing=TIMING, pace=PACE)


def _take(root: Path) -> None:
    """Take batches, and record what an ingest would have read."""
    _ready(root, "taker").touch()
    ledger = Ledger(root / "arrivals")
    while True:
        batch = take_batch(ledger, root / "inbox", max_series=20, timing=TIMING)
        if batch is None:
            time.sleep(0.2)
            continue
        found = sorted(sha256_file(path) for path in batch.folder.rglob("*.dcm"))
        record = root / "ingested" / f"{batch.number}.json"
        if record.exists():  # it was killed between this and the next line
            assert json.loads(record.read_text()) == found, f"batch {batch.number} changed"
        write_json_atomic(record, found)
        ledger.set_batch(batch.number, "listed")


# ---- what was found ----------------------------------------------------------------------------------------------------


def _check(root: Path, series: list[Sent]) -> dict[str, Any]:
    """Compare what was taken with what was sent."""
    batches = {int(path.stem): json.loads(path.read_text()) for path in (root / "ingested").glob("*.json")}
    ledger = Ledger(root / "arrivals")
    assert sorted(batches) == [batch.number for batch in ledger.batches("listed")]
    assert len(ledger.batches()) == len(batches)
    where: dict[str, list[int]] = defaultdict(list)
    for number in sorted(batches):
        for sha in batches[number]:
            where[sha].append(number)
    once = parts = 0
    for one in series:
        contents = [hashlib.sha256(data).hexdigest() for data in one.files.values()]
        numbers = {number for sha in contents for number in where[sha]}
        if one.kind == "broken":
            assert not numbers, f"{one.uid} was never complete, and is in batches {numbers}"
        elif one.kind == "listed":
            assert len(numbers) == 1, f"{one.uid} is in batches {sorted(numbers)}"
            assert [where[sha] for sha in contents] == [list(numbers)] * len(contents), f"{one.uid} was taken in part"
            once += 1
        else:
            firsts = [where[sha][0] for sha in contents]  # fails where something was not taken at all
            assert numbers == set(firsts), f"{one.uid}: a batch had nothing new of it"
            parts += len(numbers) > 1
    files = sum(len(found) for found in batches.values())
    leftovers = [path.name for path in (root / "arrivals" / "batches").iterdir() if path.name.endswith(".tmp")]
    assert len(leftovers) <= 1, leftovers  # of a process that was killed just now
    return {
        "listed_series_in_exactly_one_batch": once,
        "quiet_series_in_several_batches": parts,
        "batches": len(batches),
        "files_taken": files,
    }


def _retrainings(root: Path, chance: random.Random) -> dict[str, Any]:
    """How often a policy would retrain, if the batches came some hours apart and each series were a volume of its own patient."""
    policy = RetrainPolicy(min_new_volumes=5, window_hours=24.0)
    now = datetime(2027, 1, 1, tzinfo=UTC)
    last: Last | None = None
    listed, begun, looks = 0, [], 0
    ledger = Ledger(root / "arrivals")
    for batch in ledger.batches():
        now += timedelta(hours=chance.expovariate(1 / 5))
        listed += batch.num_series
        for _ in range(2):  # an event comes twice, and the nightly run comes, too
            looks += 1
            new = listed - (last.num_volumes if last else 0)
            facts = Facts(f"sha256:{listed}", listed, listed, new, new, last, "", now)
            if due(policy, facts).train:
                last = Last(facts.snapshot, listed, now)
                begun.append(now)
    apart = [(after - before) / timedelta(hours=1) for before, after in pairwise(begun)]
    assert all(hours >= policy.window_hours for hours in apart), apart
    return {
        "looks_at_the_policy": looks,
        "retrainings": len(begun),
        "days": round((now - datetime(2027, 1, 1, tzinfo=UTC)).days, 1),
    }


if __name__ == "__main__":
    if sys.argv[1] in _ROLES:
        parent = psutil.Process().parent()

        def end_with_parent() -> None:
            if parent is not None:
                parent.wait()
            psutil.Process().kill()

        threading.Thread(target=end_with_parent, daemon=True).start()
        (_watch if sys.argv[1] == "watcher" else _take)(Path(sys.argv[2]))
    else:
        sys.stdout.write(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))) + "\n")
