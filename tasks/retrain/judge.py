"""Whether a challenger becomes champion: decided of the evidence and a policy alone, with a reason that a person reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prdit_models.metrics.by_patient import MeanDifference
from prdit_models.metrics.paired import ShareDifference
from tasks.retrain.policy import RetrainPolicy


@dataclass(frozen=True)
class Share:
    """A share of the challenger's samples, and how it differs from the champion's.

    Attributes:
        value, low, high: of the challenger, with Wilson's interval; None where it was not measured.
        difference: challenger − champion; None where there is nothing to compare with.
        note: why something is missing.
    """

    value: float | None = None
    low: float = 0.0
    high: float = 1.0
    difference: ShareDifference | None = None
    note: str = ""


@dataclass(frozen=True)
class Distance:
    """A figure of both reports beside each other.

    Attributes:
        name: of the figure.
        value, low, high: challenger − champion, with its interval.
        better: whether the interval lies on the better side of 0 (true), on the worse one (false), or on both (None).
    """

    name: str
    value: float
    low: float
    high: float
    better: bool | None


@dataclass(frozen=True)
class Evidence:
    """What is known of a challenger, and of how it compares with the champion.

    Attributes:
        champion: version of the champion; None: there is none that it could be compared with.
        why_none: why there is none, one sentence.
        lost: why nothing can be compared with the champion, whose files are gone; empty otherwise.
        refused: why the challenger must not be promoted at all; empty otherwise.
        unmet: gates of the configuration that its trainings do not meet, one sentence each.
        loss: difference of the held-out losses, challenger − champion; None: they do not compare.
        why_no_loss: why they do not, one sentence.
        losses: mean held-out loss of champion and challenger.
        reference: number of the frozen reference; 0: none was made.
        reference_volumes: volumes of it.
        distances: figures of both reports, where they compare.
        why_no_distances: why there are none, one sentence.
        anatomy: share of samples that could be a chest.
        copies: share of samples that are called copies of training volumes.
        patients: that champion and challenger were trained on, where it is known.
    """

    champion: int | None
    why_none: str = ""
    lost: str = ""
    refused: str = ""
    unmet: tuple[str, ...] = ()
    loss: MeanDifference | None = None
    why_no_loss: str = ""
    losses: tuple[float, float] | None = None
    reference: int = 0
    reference_volumes: int = 0
    distances: tuple[Distance, ...] = ()
    why_no_distances: str = ""
    anatomy: Share = field(default_factory=Share)
    copies: Share = field(default_factory=Share)
    patients: tuple[int | None, int | None] = (None, None)


@dataclass(frozen=True)
class Judgement:
    """The outcome.

    Attributes:
        promote: whether the challenger becomes champion.
        reason: a paragraph for people.
        figures: what it rests on, by name.
    """

    promote: bool
    reason: str
    figures: dict[str, Any]


def judge(policy: RetrainPolicy, evidence: Evidence) -> Judgement:
    """Decide on a challenger: what must not be comes first, then the held-out loss, else the distances."""
    promote, why = _decided(policy, evidence)
    beside = [_shown(share, name) for share, name in ((evidence.anatomy, "anatomy"), (evidence.copies, "copies"))]
    sentences = [why, *_beside(evidence), *(text for text in beside if text)]
    return Judgement(promote, " ".join(sentences), figures_of(evidence))


def _decided(policy: RetrainPolicy, evidence: Evidence) -> tuple[bool, str]:
    vetoes = _vetoes(policy, evidence)
    if vetoes:
        return False, f"Held. {' '.join(vetoes)}"
    if evidence.champion is None:
        return True, f"Promoted: {evidence.why_none} Its gates are met, and nothing speaks against it."
    if evidence.loss is not None:
        return _by_loss(policy, evidence, evidence.loss)
    return _by_distances(policy, evidence)


def _vetoes(policy: RetrainPolicy, evidence: Evidence) -> list[str]:
    """Why a challenger is not promoted whatever else was measured."""
    found = [f"It must not be promoted: {evidence.refused}."] if evidence.refused else []
    found += [f"A gate of the configuration is not met: {sentence}." for sentence in evidence.unmet]
    found += [evidence.lost] if evidence.lost else []
    copies, anatomy = evidence.copies, evidence.anatomy
    if copies.value is None:
        found.append(f"Its copy rate is not known ({copies.note}): it could memorise more than the champion.")
    else:
        if copies.difference is not None and copies.difference["low"] > 0:
            found.append(
                f"It memorises more than the champion: its copy rate is higher by {_interval(copies.difference)}."
            )
        if policy.max_copy_rate is not None and copies.low > policy.max_copy_rate:
            found.append(
                f"{copies.value:.0%} of its samples are called copies of training volumes (at least {copies.low:.0%}); "
                f"max_copy_rate is {policy.max_copy_rate:g}."
            )
    if anatomy.difference is not None and anatomy.difference["high"] < 0:
        found.append(
            f"Fewer of its samples could be a chest than of the champion's: the difference is {_interval(anatomy.difference)}."
        )
    least = policy.min_anatomy_share
    if evidence.champion is None and anatomy.value is not None and least is not None and anatomy.high < least:
        found.append(
            f"There is no champion to compare it with, and {anatomy.value:.0%} of its samples could be a chest (at most "
            f"{anatomy.high:.0%}); a first champion needs {least:.0%} (min_anatomy_share)."
        )
    return found


def _by_loss(policy: RetrainPolicy, evidence: Evidence, loss: MeanDifference) -> tuple[bool, str]:
    old, new = evidence.losses or (0.0, 0.0)
    said = (
        f"Its held-out loss on reference {evidence.reference} is {new:.5g}, that of version {evidence.champion} {old:.5g}: the "
        f"difference is {_interval(loss)} over {loss['num_patients']} patients ({loss['num_volumes']} volumes)."
    )
    if few := _too_few(policy, evidence):
        return False, f"{few} {said}"
    if loss["high"] < 0:
        return True, f"Promoted: better than the champion beyond noise. {said}"
    if loss["low"] > 0:
        return False, f"Held: worse than the champion beyond noise. {said}"
    needed = (
        ""
        if loss["num_needed"] is None
        else (
            f" A difference of this size would need about {loss['num_needed']} held-out patients to lie beyond noise."
        )
    )
    if policy.promote == "better" or policy.margin is None:
        return False, f"Held: not better than the champion beyond noise. {said}{needed}"
    margin = policy.margin * abs(old)
    trained_on = _patients(evidence)
    if loss["high"] < margin and _more_patients(evidence):
        return True, (
            f"Promoted: not worse than the champion by more than the margin of {margin:.3g} (margin {policy.margin:g} of its "
            f"loss), and trained on more patients ({trained_on}). {said}"
        )
    why = (
        f"it may be worse by more than the margin of {margin:.3g} (margin {policy.margin:g} of the champion's loss)"
        if loss["high"] >= margin
        else f"it was not trained on more patients ({trained_on})"
    )
    return False, f"Held: not better than the champion beyond noise, and {why}. {said}{needed}"


def _too_few(policy: RetrainPolicy, evidence: Evidence) -> str:
    """That the reference has too few volumes for a promotion over a champion; empty where it has enough."""
    if evidence.reference_volumes >= policy.min_reference_volumes:
        return ""
    return (
        f"Held: the reference has {evidence.reference_volumes} held-out volume(s), and the policy asks for "
        f"{policy.min_reference_volumes} (min_reference_volumes)."
    )


def _by_distances(policy: RetrainPolicy, evidence: Evidence) -> tuple[bool, str]:
    """Of models whose losses do not compare: better in a distance beyond noise, and in none worse."""
    why = f"Held-out losses do not compare: {evidence.why_no_loss}"
    if few := _too_few(policy, evidence):
        return False, f"{few} {why}"
    better = [each.name for each in evidence.distances if each.better is True]
    worse = [each.name for each in evidence.distances if each.better is False]
    if better and not worse:
        return (
            True,
            f"Promoted: better than the champion beyond noise in {', '.join(better)}, and in nothing worse. {why}",
        )
    if worse:
        return False, f"Held: worse than the champion beyond noise in {', '.join(worse)}. {why}"
    return False, f"Held: in no distance better than the champion beyond noise. {why}"


def _beside(evidence: Evidence) -> list[str]:
    """Sentences on the distances of both reports."""
    if evidence.champion is None:
        return []
    if not evidence.distances:
        return [f"The reports do not compare: {evidence.why_no_distances}"] if evidence.why_no_distances else []
    rows = [f"{each.name} {each.value:+.3g} ({each.low:.3g} to {each.high:.3g})" for each in evidence.distances]
    return [f"Differences of the reports' figures: {', '.join(rows)}."]


def _shown(share: Share, what: str) -> str:
    names = {"anatomy": "Samples that could be a chest", "copies": "Samples called copies"}
    if share.value is None:
        return f"{names[what]}: not known ({share.note})." if share.note else ""
    beside = f", {_interval(share.difference)} beside the champion" if share.difference else ""
    beside += f" ({share.note})" if share.note else ""
    return f"{names[what]}: {share.value:.0%}{beside}."


def _interval(difference: Mapping[str, Any]) -> str:
    level = f"{difference['level']:.0%}"
    return f"{difference['value']:+.3g} ({difference['low']:.3g} to {difference['high']:.3g}, {level})"


def _more_patients(evidence: Evidence) -> bool:
    old, new = evidence.patients
    return old is not None and new is not None and new > old


def _patients(evidence: Evidence) -> str:
    old, new = ("an unknown number" if count is None else str(count) for count in evidence.patients)
    return f"{new}, the champion on {old}"


def figures_of(evidence: Evidence) -> dict[str, Any]:
    """The evidence as plain numbers by name, without what is not known."""
    found: dict[str, Any] = {"reference": evidence.reference or None}
    if evidence.losses:
        found |= dict(zip(("held_out_loss_champion", "held_out_loss_challenger"), evidence.losses, strict=True))
    if evidence.loss:
        found |= {f"held_out_loss_{key}": evidence.loss[key] for key in ("low", "high", "level", "num_patients")}
        found |= {"held_out_loss_difference": evidence.loss["value"], "patients_needed": evidence.loss["num_needed"]}
    for name, share in (("anatomy_share", evidence.anatomy), ("copy_rate", evidence.copies)):
        found[name] = share.value
        if share.difference:
            found |= {f"{name}_{key}": share.difference[key] for key in ("low", "high")}
            found[f"{name}_difference"] = share.difference["value"]
    for each in evidence.distances:
        found |= {f"{each.name}_difference": each.value, f"{each.name}_low": each.low, f"{each.name}_high": each.high}
    found |= dict(zip(("patients_champion", "patients_challenger"), evidence.patients, strict=True))
    return {name: value for name, value in found.items() if value is not None}
