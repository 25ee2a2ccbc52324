"""A member of the corpus: how it is written, and what ingest must make of it."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.corpus.world import Truth, World


@dataclass(frozen=True)
class Expect:
    """What is right for one member.

    Attributes:
        volumes: the volumes that are committed, in any order.
        reasons: codes of everything that is left out, scans, images and files alike, each as often as it occurs: "a|b" is either,
            "a*" is at least one of them, "a?" is at most one.
        notes: regular expressions that the report's notes must match, each some note.
        config: settings of ingest other than the corpus', with the limits that the member is about.
        alternatives: other outcomes that are as right; what a member's docstring says is a judgement.
        detail: a regular expression that the sentence of every refused scan must match.
    """

    volumes: tuple[Truth, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    alternatives: tuple["Expect", ...] = ()
    detail: str = ""

    @property
    def label(self) -> str:
        """For the confusion matrix."""
        names = sorted({reason.rstrip("*").replace("|", "/") for reason in self.reasons if not reason.endswith("?")})
        return outcome_label(len(self.volumes), names)


def outcome_label(num_volumes: int, reasons: list[str]) -> str:
    """Number of volumes and codes as one word."""
    volumes = {0: (), 1: ("1 volume",)}.get(num_volumes, (f"{num_volumes} volumes",))
    return " + ".join([*volumes, *reasons]) or "nothing"


@dataclass(frozen=True)
class Place:
    """Where a member is written: its own folder in the world of a seed."""

    folder: Path
    world: World
    name: str

    def uid(self, *what: object) -> str:
        """A UID of this member alone."""
        digest = hashlib.sha256(repr((self.world.seed, self.name, what)).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:15], 'big')}"

    @property
    def patient_id(self) -> str:
        """PatientID of this member alone."""
        return f"PAT-{self.uid('patient')[-8:]}"


Write = Callable[[Place], Expect]


@dataclass(frozen=True)
class Member:
    """One member.

    Attributes:
        name: unique; also its folder's.
        kind: number of the kind of fault (docs/ingestion.md has the same words), or "valid", "hostile", "other".
        write: writes it and says what is right.
        broken: whether something is wrong with it; else it is odd, but good.
        owner: which area of ingest decides: "classic", "multi-frame", "listing", "formats", "plausible".
        alone: whether it must be the only one in its source.
        slow: left out where seconds count.
    """

    name: str
    kind: str
    write: Write
    broken: bool
    owner: str
    alone: bool = False
    slow: bool = False


MEMBERS: dict[str, Member] = {}


def member(
    kind: str, owner: str, *, name: str = "", alone: bool = False, slow: bool = False, broken: bool | None = None
) -> Callable[[Write], Write]:
    """Add a function to the corpus under its name."""

    def add(write: Write) -> Write:
        called = name or getattr(write, "__name__", "")
        if called in MEMBERS:
            raise ValueError(f"two members are called {called}")
        wrong = kind != "valid" if broken is None else broken
        MEMBERS[called] = Member(called, kind, write, wrong, owner, alone, slow)
        return write

    return add


def reasons_problem(expected: tuple[str, ...], got: Counter[str]) -> str:
    """What is wrong with the codes that were given; "" where they match one to one."""
    starred = [item.rstrip("*").split("|") for item in expected if item.endswith("*")]
    missing = ["|".join(codes) for codes in starred if not any(got[code] for code in codes)]
    absorbed = {code for codes in starred for code in codes}
    units = sorted(got.elements(), key=lambda code: code in absorbed)
    num_scarce = sum(code not in absorbed for code in units)
    wanted = [item for item in expected if not item.endswith("*")]
    wanted.sort(key=lambda item: item.endswith("?"))
    owner: dict[int, int] = {}  # unit: which wanted item it is

    def find(item: int, tried: set[int], among: int) -> bool:
        """Give an item one of the first units, moving others where they have a choice."""
        for number, code in enumerate(units[:among]):
            if number in tried or code not in wanted[item].rstrip("?").split("|"):
                continue
            tried.add(number)
            if number not in owner or find(owner[number], tried, among):
                owner[number] = item
                return True
        return False

    left = [number for number in range(len(wanted)) if not find(number, set(), num_scarce)]
    left = [number for number in left if not find(number, set(), len(units))]
    missing += [wanted[number] for number in left if not wanted[number].endswith("?")]
    extra = Counter(code for number, code in enumerate(units) if number not in owner and code not in absorbed)
    parts = [f"missing {', '.join(sorted(missing))}"] if missing else []
    parts += [f"unexpected {', '.join(f'{count} × {code}' for code, count in sorted(extra.items()))}"] if extra else []
    return "; ".join(parts)
