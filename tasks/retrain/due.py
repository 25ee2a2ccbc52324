"""Whether a retraining is due: decided of a few facts, without looking at anything else."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tasks.retrain.policy import RetrainPolicy

_DAY_S = 86400.0


@dataclass(frozen=True)
class Last:
    """The last training: that of the champion, or of the last challenger.

    Attributes:
        snapshot: digest of the snapshot that it was trained on.
        num_volumes: of the snapshot.
        began: when it did; None where it is not known.
    """

    snapshot: str
    num_volumes: int
    began: datetime | None


@dataclass(frozen=True)
class Facts:
    """What the decision depends on, besides the policy.

    Attributes:
        snapshot: digest of what the store lists now; empty: nothing.
        num_volumes, num_patients: of it.
        new_volumes, new_patients: of them, those that the last training did not have.
        last: the last training; None: there was none.
        refused: why the champion must not be used any more (a patient of it was forgotten); empty otherwise.
        now: the time.
    """

    snapshot: str
    num_volumes: int
    num_patients: int
    new_volumes: int
    new_patients: int
    last: Last | None
    refused: str
    now: datetime


@dataclass(frozen=True)
class Due:
    """The decision.

    Attributes:
        state: `train`; `wait`: there is something new, but not enough, or too early; `nothing`: there is nothing new.
        reason: for people, one or two sentences.
    """

    state: Literal["train", "wait", "nothing"]
    reason: str

    @property
    def train(self) -> bool:
        """Whether a retraining begins."""
        return self.state == "train"


def due(policy: RetrainPolicy, facts: Facts) -> Due:
    """Whether a retraining is due; before the first training only `min_new_volumes` counts."""
    last = facts.last
    if not facts.snapshot or not facts.num_volumes:
        return Due("nothing", "The store lists no volume.")
    if last and last.snapshot == facts.snapshot:
        return Due("nothing", f"Nothing new: the last training had the same {facts.num_volumes} volumes.")
    if last and not facts.new_volumes and not facts.refused:
        return Due("nothing", "Nothing new: the last training had every volume that the store lists now.")
    if facts.num_patients < 2:
        return Due(
            "wait",
            f"{facts.num_volumes} volume(s) of one patient: a training needs two patients or more, one to train on and one to hold "
            "out.",
        )
    if last and last.began and (wait := _until_window(policy, last.began, facts.now)):
        return Due("wait", f"{_what_is_new(facts)} {wait}")
    if facts.refused:
        return Due("train", f"The champion must not be used any more: {facts.refused}")
    return _by_rules(policy, facts)


def _by_rules(policy: RetrainPolicy, facts: Facts) -> Due:
    last, new = facts.last, facts.new_volumes
    met: list[str] = []
    unmet: list[str] = []
    if policy.min_new_volumes is not None:
        (met if new >= policy.min_new_volumes else unmet).append(f"min_new_volumes is {policy.min_new_volumes}")
    if policy.min_new_share is not None and last:
        share = new / max(last.num_volumes, 1)
        (met if share >= policy.min_new_share else unmet).append(
            f"min_new_share is {policy.min_new_share:g} (they are {share:.2g})"
        )
    if policy.max_days is not None and last and last.began:
        days = (facts.now - last.began).total_seconds() / _DAY_S
        (met if days >= policy.max_days else unmet).append(
            f"max_days is {policy.max_days:g} (the last training began {days:.1f} days ago)"
        )
    if met or not unmet:
        return Due("train", f"{_what_is_new(facts)} Due: {'; '.join(met) or 'it is the first training'}.")
    return Due("wait", f"{_what_is_new(facts)} Not due yet: {'; '.join(unmet)}.")


def _what_is_new(facts: Facts) -> str:
    since = "the last training did not have" if facts.last else "no training has had yet"
    return f"{facts.new_volumes} volume(s) that {since}, of {facts.new_patients} new patient(s); {facts.num_volumes} are listed."


def _until_window(policy: RetrainPolicy, began: datetime, now: datetime) -> str:
    """Why the window forbids a retraining now; empty where it does not."""
    opens = began + timedelta(hours=policy.window_hours)
    if now >= opens:
        return ""
    return (
        f"At most one retraining begins in {policy.window_hours:g} hours (window_hours); the next may begin at "
        f"{opens:%Y-%m-%d %H:%M} UTC."
    )
