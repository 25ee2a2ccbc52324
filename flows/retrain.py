"""The flow `retrain`: new scans to a challenger, which is promoted or held.

It may be killed at any point and started again: batches have states, a retraining is recorded before it begins, stages are cached,
a checkpoint is registered once, and a decision is made once for each version.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, TypeVar

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from pydantic import Field

from flows.hooks import ATTENDED, DAY_S, HELD, attended
from flows.installation import SiteChoice
from flows.named_files import policy_names
from flows.notify import notify
from flows.retrain_batches import Taken, notify_held, take_batches
from flows.retrain_challenger import Challenge, decided
from flows.retrain_setup import LOCK, Setup
from flows.room import make_room
from storage.documents.promotion import Decision
from storage.documents.retraining import Outcome, Retraining
from storage.errors import ComputationError, ForgottenError, InputError, LockedError
from storage.locks import locked
from storage.registry import CHAMPION, ModelVersion, RegistryUnavailableError
from tasks.retrain.due import Due, Facts, due
from tasks.retrain.rounds import Rounds

NOTHING, WAITING, PROMOTED, CHALLENGER_HELD = (
    "Nothing new",
    "Waiting",
    "Promoted",
    "Challenger held",
)  # names of final states
T = TypeVar("T")
PolicyChoice = Annotated[str, Field(json_schema_extra={"enum": ["", *policy_names()]})]
logger = logging.getLogger("prdit.retrain")


@flow(name="retrain", timeout_seconds=14 * DAY_S, **ATTENDED)
def retrain(
    configuration: SiteChoice = "",
    inbox: str = "",
    store: str = "",
    policy: PolicyChoice = "",
    overrides: dict[str, Any] = {},  # noqa: B006  # never changed; the form needs the value itself as default
    arrivals: str = "",
) -> dict[str, Any]:
    """New scans to a challenger: ingest with the drift gate, training when the policy says so, judgement, promotion or not.

    Args:
        configuration: Named configuration that the challenger is trained with. Empty: the site's (.prdit/site.yaml).
        inbox: Folder where new scans arrive, as the worker sees it; read-only. Empty: the site's (.prdit/inbox).
        store: Folder of the volume store that new scans are added to. Empty: the site's (.prdit/store).
        policy: When to train, how, and what is promoted: a policy by name. Empty: the site's.
        overrides: Settings that differ from the configuration, nested as in flows/configs/*.yaml, on top of the site's. An unknown
            key is an error.
        arrivals: Folder of the inbox's ledger and batches. Empty: the site's (.prdit/arrivals).
    """
    with attended():
        found: Any = run_retraining(Setup.of(configuration, inbox, store, policy, overrides, arrivals))
        return found  # a state, which Prefect makes the run's


def run_retraining(setup: Setup) -> Any:
    """One retraining, as a final state with its name: what was done, with the reason as message."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(setup.workdir / LOCK, timeout_s=0.0))
        except LockedError:
            return _ended(WAITING, "Another retraining works in the same working folder; it takes new scans as well.")
        taken = take_batches(setup)
        name, reason, decision = _trained(setup)
    reasons = [*taken.sentences, reason]
    if taken.held and name in (NOTHING, WAITING):
        name = HELD
    elif taken.held:
        notify_held(setup, taken)
    return _ended(name, " ".join(reasons), taken, decision)


def _trained(setup: Setup) -> tuple[str, str, Decision | None]:
    """Train and judge a challenger where one is due, or was begun: name of the state, reason, decision."""
    rounds, registry = Rounds(setup.workdir), setup.registry()
    retraining = rounds.under_way(setup.settings)
    if retraining is None:
        champion = registry.find(CHAMPION)
        facts = setup.facts(rounds, champion)
        decision = _step("is it due", lambda: is_due(setup, facts))
        if not decision.train:
            return (NOTHING if decision.state == "nothing" else WAITING), decision.reason, None
        retraining = rounds.begin(begun(setup, facts, champion, decision))
    else:
        logger.warning("the retraining that was begun at %s goes on: %s", retraining.begun, retraining.reason)
    make_room(setup.config, setup.site)
    challenge = Challenge(setup, registry, retraining, _step)
    try:
        made = decided(challenge) or challenge.run()
    except ComputationError as error:  # the same again would come to the same
        rounds.end("failed")
        reason = f"The challenger came to nothing usable, and is held: {error}"
        notify(setup.site.notify, "attention", "retrain: the challenger came to nothing usable", reason)
        return CHALLENGER_HELD, reason, None
    except ForgottenError as error:  # its snapshot stays without the patient
        rounds.end("given up")
        reason = f"The retraining that was begun at {retraining.begun} is given up; the next run decides anew. {error}"
        notify(setup.site.notify, "attention", "retrain: a retraining is given up", reason)
        return WAITING, reason, None
    except RegistryUnavailableError:  # it goes on once MLflow answers
        raise
    except InputError:  # what its snapshot is in the way of, a newer one may not be
        rounds.end("given up")
        raise
    outcome: Outcome = "promoted" if made.action == "promoted" else "held"
    rounds.end(outcome, made.challenger)
    text = f"{made.reason} `prdit models ls` lists the versions, `prdit models rollback` takes a promotion back."
    notify(setup.site.notify, "info", f"retrain: version {made.challenger} {outcome}", text)
    return (PROMOTED if outcome == "promoted" else CHALLENGER_HELD), made.reason, made


def is_due(setup: Setup, facts: Facts) -> Due:
    """Whether a retraining is due."""
    decision = due(setup.policy, facts)
    logger.info("%s: %s", decision.state, decision.reason)
    return decision


def begun(setup: Setup, facts: Facts, champion: ModelVersion | None, decision: Due) -> Retraining:
    """The record of a retraining that begins now, on what it was decided by."""
    return Retraining(
        snapshot=facts.snapshot,
        num_volumes=facts.num_volumes,
        num_patients=facts.num_patients,
        reason=decision.reason,
        policy=setup.policy_name,
        settings=setup.settings,
        champion=champion.version if champion else None,
        initial=champion.checkpoint.digest if champion and setup.is_warm(champion) else "",
        begun=facts.now.isoformat(timespec="seconds"),
    )


def _step(name: str, work: Callable[[], T]) -> T:
    """Do some work as a task run of a name, which Prefect's page shows."""

    @task(name=name, persist_result=False, cache_policy=NO_CACHE)
    def step() -> Any:
        return work()

    state: Any = step(return_state=True)
    found: T = state.result()
    return found


def _ended(name: str, reason: str, taken: Taken | None = None, decision: Decision | None = None) -> Any:
    """The final state of a run; its reason is on the page as well."""
    try:
        create_markdown_artifact(key="prdit-retrain", markdown=f"**{name}**\n\n{reason}")
    except Exception as error:  # noqa: BLE001  # a page must never end a retraining
        logger.warning("the reason is not on the run's page: %s", error)
    logger.info("%s: %s", name, reason)
    result = {
        "state": name,
        "reason": reason,
        "listed": taken.listed if taken else [],
        "held": taken.held if taken else [],
        "decision": decision.to_json() if decision else None,
    }
    return Completed(name=name, message=reason, data=result)
