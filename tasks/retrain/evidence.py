"""What is known of a challenger beside the champion: held-out losses, both reports, what its trainings must meet."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from prdit_models.metrics.by_patient import mean_difference
from prdit_models.metrics.metric import About
from prdit_models.metrics.paired import ShareDifference, share_difference
from prdit_models.metrics.spread import share_interval
from storage.artifacts import PROVENANCE, Ref, committed_ref, input_ref, load_provenance
from storage.documents.reference import Reference
from storage.documents.report import Report
from storage.errors import InputError, StorageError, UserError
from tasks.compare.differences import compare
from tasks.compare.features import features_of
from tasks.compare.runs import Found, load
from tasks.evaluate.comparability import check_comparable
from tasks.evaluate.tables import about_figures
from tasks.model.checkpoint import differences, load_info
from tasks.model.compute import ComputeConfig
from tasks.retrain.held_out import Weights, held_out_losses
from tasks.retrain.judge import Distance, Evidence, Share
from tasks.retrain.policy import RetrainPolicy

_EVALUATIONS = "evaluate"  # folder of the reports
logger = logging.getLogger("prdit.retrain")


@dataclass(frozen=True)
class Candidate:
    """A model that is compared.

    Attributes:
        checkpoint: verified by hash.
        report: its evaluation; None where there is none any more.
        patients: that it was trained on, where it is known.
        version: of the registered model.
    """

    checkpoint: Ref
    report: Ref | None
    patients: int | None
    version: int


@dataclass(frozen=True)
class Measuring:
    """Where and how held-out losses are measured.

    Attributes:
        reference, number: the frozen reference, and its number.
        store, workdir: folders.
        weights: which weights are measured: those that are sampled.
        compute: where.
    """

    reference: Reference
    number: int
    store: Path
    workdir: Path
    weights: Weights = "ema"
    compute: ComputeConfig | None = None

    def of(self, checkpoint: Ref) -> dict[str, float]:
        """Losses of a checkpoint by volume id."""
        return held_out_losses(
            checkpoint,
            self.reference,
            self.number,
            store=self.store,
            workdir=self.workdir,
            weights=self.weights,
            compute=self.compute,
        )


def gather(challenger: Candidate, champion: Candidate | None, measuring: Measuring, policy: RetrainPolicy) -> Evidence:
    """Everything that a judgement rests on, except gates, marks and why there is no champion.

    Args:
        challenger: has a report.
        champion: None: there is none to compare with.
        measuring: of the held-out losses.
        policy: level of the interval.
    Raises: StorageError, InputError, ComputationError: the challenger cannot be measured.
    """
    own = Report.load(challenger.report.path) if challenger.report else None
    other = Report.load(champion.report.path) if champion and champion.report else None
    found = Evidence(
        champion=champion.version if champion else None,
        reference=measuring.number,
        reference_volumes=len(measuring.reference.volumes),
        anatomy=_anatomy(own, other),
        copies=_copies(own, other),
        patients=(champion.patients if champion else None, challenger.patients),
    )
    if champion is None:
        return found
    found = _with_losses(found, challenger, champion, measuring, policy)
    distances, why = _distances(challenger, champion)
    return replace(found, distances=distances, why_no_distances=why)


def _with_losses(
    found: Evidence, challenger: Candidate, champion: Candidate, measuring: Measuring, policy: RetrainPolicy
) -> Evidence:
    if why := why_losses_differ(champion.checkpoint, challenger.checkpoint):
        return replace(found, why_no_loss=why)
    if not measuring.reference.volumes:
        return replace(found, why_no_loss="the reference has no volume: none is held out of both trainings.")
    old, new = measuring.of(champion.checkpoint), measuring.of(challenger.checkpoint)
    losses = fmean(old.values()), fmean(new.values())
    if measuring.reference.num_patients < 2:
        why = f"the reference has volumes of {measuring.reference.num_patients} patient(s), and an interval needs two."
        return replace(found, losses=losses, why_no_loss=why)
    difference = mean_difference(old, new, measuring.reference.volumes, level=policy.level)
    return replace(found, losses=losses, loss=difference)


def why_losses_differ(one: Ref, other: Ref) -> str:
    """Why the losses of two checkpoints do not mean the same; empty where they do. Models may differ in size."""
    found = {
        key: pair for key, pair in differences(load_info(one), load_info(other)).items() if not key.startswith("model.")
    }
    shown = "; ".join(f"{key} {there} and {here}" for key, (there, here) in found.items())
    return f"champion and challenger differ in {shown}." if found else ""


def report_of(workdir: Path, checkpoint: Ref, like: Report | None = None) -> Ref | None:
    """The newest report on samples of a checkpoint in a working folder; first those that compare with another report.

    Args:
        workdir: working folder.
        checkpoint: whose samples.
        like: the report that it will be compared with.
    """
    found: list[tuple[bool, str, Ref]] = []
    for record in sorted((workdir / _EVALUATIONS).glob(f"*/{PROVENANCE}")):
        try:
            ref = committed_ref(record.parent)
            if ref is None or input_ref(input_ref(ref, "samples"), "checkpoint").digest != checkpoint.digest:
                continue
            found.append((like is None or _compares(ref, like), load_provenance(ref).created, ref))
        except StorageError as error:
            logger.warning("the report in %s is passed over: %s", record.parent, error)
    return max(found, key=lambda each: each[:2])[2] if found else None


def _compares(report: Ref, like: Report) -> bool:
    try:
        check_comparable({"one": Report.load(report.path), "other": like})
    except InputError:
        return False
    return True


def _distances(challenger: Candidate, champion: Candidate) -> tuple[tuple[Distance, ...], str]:
    """Figures that say which of both is better and have an interval; or why there are none."""
    if challenger.report is None or champion.report is None:
        return (), "the champion's report is not there any more."
    try:
        runs = load([Found("champion", champion.report, None), Found("challenger", challenger.report, None)], "")
        check_comparable({run.name: run.report for run in runs})
        comparison = compare(runs, features_of, lambda done, total: None)
    except UserError as error:
        return (), str(error)
    about = {name: known for name, (_, known) in about_figures().items()}
    rows = tuple(
        Distance(figure.name, change.value, change.interval["low"], change.interval["high"], change.better)
        for figure in comparison.figures
        for change in figure.differences
        if about.get(figure.name, About(figure.name)).better and change.value is not None and change.interval
    )
    notes = {change.note for figure in comparison.figures for change in figure.differences if "so few" in change.note}
    return rows, "" if rows else (" ".join(sorted(notes)[:1]) or "no figure of both has an interval.")


def _anatomy(own: Report | None, other: Report | None) -> Share:
    first, second = (_plausible(report) for report in (other, own))
    if second is None:
        return Share(note="the real volumes show no whole chest in this view, or it was not measured")
    return _share(first, second, "" if first else "the champion's is not known" if other else "")


def _plausible(report: Report | None) -> list[bool] | None:
    """Of every sample, whether it could be a chest; None where it was not measured."""
    generated = (report.details.get("anatomy") or {}).get("generated") if report else None
    return [not each["failed"] for each in generated.values()] if generated else None


def _copies(own: Report | None, other: Report | None) -> Share:
    first, second = (_copied(report) for report in (other, own))
    if second is None:
        why = (
            "there is no report"
            if own is None
            else "evaluate.metrics.memorisation is switched off, or found nothing to compare"
        )
        return Share(note=why)
    return _share(first, second, "" if first else "the champion's is not known" if other else "")


def _copied(report: Report | None) -> list[bool] | None:
    """Of every sample, whether it is called a copy of a training volume; None where it was not measured."""
    details: dict[str, Any] = (report.details.get("memorisation") or {}) if report else {}
    distances, threshold = details.get("distances_hu"), details.get("threshold_hu")
    if not distances or threshold is None:
        return None
    return [distance < threshold for distance in distances["generated"]]


def _share(first: list[bool] | None, second: list[bool], note: str) -> Share:
    own = share_interval(sum(second), len(second))
    difference: ShareDifference | None = share_difference(first, second, paired=False) if first else None
    return Share(sum(second) / len(second), own["low"], own["high"], difference, note)
