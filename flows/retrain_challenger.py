"""The second half of a retraining: the challenger is trained, measured, registered, and promoted or held."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flows.config import PipelineConfig
from flows.pipeline import PipelineRun, Purpose, run_through
from flows.retrain_setup import Setup
from flows.stages import training_row
from storage.artifacts import Ref
from storage.documents.promotion import Decision
from storage.documents.report import Report
from storage.documents.retraining import Retraining
from storage.errors import DamagedArtifactError, InputError, LockedError, MissingArtifactError, StorageError
from storage.model_names import checkpoint_of
from storage.registry import CHALLENGER, CHAMPION, PATIENTS, ModelVersion, Registry, RegistryUnavailableError
from storage.snapshots import snapshot_ref
from tasks.retrain.decisions import FOLDER as DECISIONS
from tasks.retrain.decisions import decisions, hold, promote, settle
from tasks.retrain.evidence import Candidate, Measuring, gather, report_of
from tasks.retrain.initial import initial_checkpoints
from tasks.retrain.judge import Evidence, Judgement, judge
from tasks.retrain.reference import frozen_reference

_FROM_SCRATCH = (  # the reason is shown in MLflow, so that the paths of what is gone are in the log alone
    "It was trained from scratch, because the champion's weights, or those of the training below, are not there any more (the log "
    "names them). `start: scratch` in the policy always does so."
)
_NO_FILES = (
    "Nothing can be compared with the champion, version {version}, whose files are gone or damaged, here and in MLflow (the log "
    "names them). Restore them from a backup, or make this version champion by hand: prdit models promote."
)
Step = Callable[[str, Callable[[], Any]], Any]
logger = logging.getLogger("prdit.retrain")


@dataclass(frozen=True)
class Challenge:
    """One retraining, from its record to a decision.

    Attributes:
        setup: of the run.
        registry: of the models.
        retraining: as it was begun.
        step: runs work as a step of a name.
    """

    setup: Setup
    registry: Registry
    retraining: Retraining
    step: Step

    def run(self) -> Decision:
        """Train, sample and evaluate the challenger as the pipeline does, under one MLflow run, and judge it.

        Where the champion's weights are not there any more it is trained from scratch, and the reason of the decision says so.

        Raises: as `flows.pipeline.run_through`; RegistryUnavailableError.
        """
        (initial, note), made = self._initial(), []
        config = self._configured(warm=bool(initial))

        def judged(run: PipelineRun) -> Mapping[str, str]:
            made.append(self._judged(run, note))
            return {"prdit.decision": made[-1].action, "prdit.challenger": str(made[-1].challenger)}

        tags = {"prdit.retrain": self.retraining.begun, "prdit.policy": self.retraining.policy}
        run_through(config, "evaluate", Purpose("retrain", initial, tags, judged))
        return made[-1]

    def _configured(self, *, warm: bool) -> PipelineConfig:
        """The configuration on the retraining's snapshot; with fewer steps where the policy says so of a warm start."""
        config, share = self.setup.config, self.setup.policy.warm_steps_share
        recipe = {
            name: training.model_copy(update={"steps": max(1, math.ceil(share * training.steps))}) if warm else training
            for name, training in config.recipe.items()
        }
        return config.model_copy(update={"snapshot": self.retraining.snapshot, "recipe": recipe})

    def _initial(self) -> tuple[dict[str, Ref], str]:
        """Checkpoints of the champion with whose weights the trainings begin, none from scratch; and why there are none."""
        if not self.retraining.initial:
            return {}, ""
        starts = {name: training.start for name, training in self.setup.config.trainings.items()}
        try:
            champion = self._version_of(self.retraining.initial)
            return initial_checkpoints(checkpoint_of(self.registry, champion, self.setup.workdir), starts), ""
        except (RegistryUnavailableError, LockedError):  # it may be there a little later
            raise
        except (InputError, StorageError) as error:  # it would be the same at every later run
            logger.warning("the challenger is trained from scratch: %s", error)
            return {}, _FROM_SCRATCH

    def _version_of(self, digest: str) -> ModelVersion:
        for version in self.registry.versions():
            if version.checkpoint.digest == digest:
                return version
        raise InputError(
            f"MLflow has no version of the checkpoint {digest[:19]}… any more, with whose weights the retraining of "
            f"{self.retraining.begun} began. Use `start: scratch` in the policy."
        )

    # ---- judging -------------------------------------------------------------------------------------------------------------

    def _judged(self, run: PipelineRun, note: str) -> Decision:
        """Register the challenger, compare it with the champion, and promote or hold it; a note is added to the reason."""
        last = training_row(list(self.setup.config.trainings)[-1])
        checkpoint, report = run.outcomes[last].ref, run.outcomes["evaluate"].ref
        tags = {"prdit.policy": self.retraining.policy, "prdit.retrain": self.retraining.begun}
        version = self.step("register", lambda: self.registry.register(checkpoint, run.mlflow_id(), tags))
        if made := decision_on(self, version):
            return made
        champion = self.registry.find(CHAMPION)
        if CHAMPION not in version.aliases:
            self.registry.set_alias(CHALLENGER, version.version)
        evidence = self.step("compare", lambda: self._evidence(run, version, checkpoint, report, champion))
        judgement: Judgement = self.step("judge", lambda: judge(self.setup.policy, evidence))
        judgement = replace(judgement, reason=f"{judgement.reason} {note}".strip())
        return self.step("decide", lambda: self._decide(version, judgement))

    def _evidence(
        self, run: PipelineRun, version: ModelVersion, checkpoint: Ref, report: Ref, champion: ModelVersion | None
    ) -> Evidence:
        setup, snapshot = self.setup, snapshot_ref(self.setup.store, self.retraining.snapshot)
        usable = champion if champion and not champion.refused and champion.version != version.version else None
        other = self._candidate(usable, Report.load(report.path)) if usable else None
        split, trained = run.outcomes["split"].ref, other.checkpoint if other else None
        number, reference = frozen_reference(setup.workdir, snapshot, split, setup.policy, trained)
        why = "there is no champion yet." if champion is None else f"the champion must not be used: {champion.refused}"
        evidence = gather(
            Candidate(checkpoint, report, _patients(version), version.version),
            other,
            Measuring(
                reference,
                number,
                store=setup.store,
                workdir=setup.workdir,
                weights=setup.config.sample.weights,
                compute=setup.config.sample,
            ),
            setup.policy,
        )
        if usable and other is None:
            evidence = replace(evidence, champion=usable.version, lost=_NO_FILES.format(version=usable.version))
        return replace(evidence, why_none=why, refused=version.refused, unmet=tuple(run.unmet))

    def _candidate(self, champion: ModelVersion, like: Report) -> Candidate | None:
        """The champion to compare with; None where its files are gone."""
        try:
            checkpoint = checkpoint_of(self.registry, champion, self.setup.workdir)
        except (MissingArtifactError, DamagedArtifactError) as error:  # the same at every later run
            logger.warning("nothing can be compared with the champion: %s", error)
            return None
        report = report_of(self.setup.workdir, checkpoint, like)
        return Candidate(checkpoint, report, _patients(champion), champion.version)

    def _decide(self, version: ModelVersion, judgement: Judgement) -> Decision:
        decide = promote if judgement.promote else hold
        return decide(
            self.registry,
            self.setup.workdir / DECISIONS,
            version.version,
            reason=judgement.reason,
            by=f"policy {self.retraining.policy}",
            figures=judgement.figures,
        )


def decided(challenge: Challenge) -> Decision | None:
    """The decision of this retraining, where a process ended after it was made; it is carried out to its end."""
    folder = challenge.setup.workdir / DECISIONS
    settle(challenge.registry, folder)
    found = [one for one in decisions(folder) if _belongs(one, challenge.retraining)]
    return found[-1] if found else None


def decision_on(challenge: Challenge, version: ModelVersion) -> Decision | None:
    """The decision that was made on a version already: a version is judged once."""
    made = decisions(challenge.setup.workdir / DECISIONS)
    found = [one for one in made if one.challenger == version.version and one.action in ("promoted", "held")]
    return found[-1] if found else None


def _belongs(decision: Decision, retraining: Retraining) -> bool:
    """Whether a decision was made by a policy on a challenger of this retraining's snapshot, after it was begun."""
    return (
        decision.by.startswith("policy ")
        and decision.snapshot == retraining.snapshot
        and decision.created >= retraining.begun[:19]
    )


def _patients(version: ModelVersion) -> int | None:
    text = version.tags.get(PATIENTS, "")
    return int(text) if text.isdigit() else None
