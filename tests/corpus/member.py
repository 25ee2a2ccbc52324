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
    """What is wrong with the codes that were given; "" where they match."""
    left = Counter(got)
    missing = []
    for item in sorted(expected, key=lambda one: (one.endswith(("?", "*")), one.count("|"))):
        codes = item.rstrip("*?").split("|")
        found = next((code for code in codes if left[code]), None)
        if found is None:
            if not item.endswith("?"):
                missing.append(item)
        elif item.endswith("*"):
            del left[found]
        else:
            left[found] -= 1
    extra = sorted((+left).elements())
    parts = [f"missing {', '.join(missing)}"] if missing else []
    parts += (
        [f"unexpected {', '.join(f'{extra.count(code)} × {code}' for code in sorted(set(extra)))}"] if extra else []
    )
    return "; ".join(parts)
