"""What changes champion and challenger: promotion, hold, rollback; each recorded in MLflow and as a `Decision`.

A decision is written first, as the next file of `decisions/`, and then carried out in MLflow: alias, tags, description, and as the
last of these the tag `prdit.decision_number`. So the aliases say who is champion, and the last decision what was decided; where a
process ended in between, the tag is missing, and the next call carries the decision out before it does anything else.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.documents.promotion import Action, Decision
from storage.errors import ConfigError
from storage.locks import locked
from storage.model_names import can_be_had
from storage.numbered import Numbered
from storage.registry import CHALLENGER, CHAMPION, SNAPSHOT, ModelVersion, Registry

DECISION, NUMBER, REASON, FIGURES = "prdit.decision", "prdit.decision_number", "prdit.reason", "prdit.figures"  # tags
FOLDER = "decisions"  # of a working folder
_MAX_TAG = 4900  # MLflow takes 5000 characters
_MAX_DESCRIPTION = 5000  # MLflow's column on PostgreSQL; SQLite takes any
_WAIT_S = 120.0  # for another decision
logger = logging.getLogger("prdit.retrain")


def promote(
    registry: Registry, folder: Path, version: int, *, reason: str, by: str, figures: Mapping[str, Any] | None = None
) -> Decision:
    """Make a version champion.

    The same promotion again, after a process ended before it was carried out, finishes it and returns its decision.

    Args:
        registry: MLflow's.
        folder: of the decisions, `<workdir>/decisions`.
        version: of the registered model.
        reason: for people.
        by: who decided.
        figures: what it rests on.
    Raises:
        ConfigError: there is no such version, it is champion already, it is marked as refused (a patient was forgotten), or its
            files are gone.
        RegistryUnavailableError: MLflow does not answer; nothing is decided, or the next call carries it out.
        StorageError: the last decision is damaged; UnwritableError.
    """
    with _deciding(registry, folder) as finished:
        wanted = _existing(registry, version)
        if finished and finished.action == "promoted" and finished.champion == version:
            return finished
        if wanted.refused:
            raise ConfigError(
                f"Version {version} of {registry.name} must not be promoted: {wanted.refused}. Retrain, and promote the "
                "new version."
            )
        champion = registry.find(CHAMPION)
        if champion and champion.version == version:
            raise ConfigError(f"Version {version} of {registry.name} is champion already; nothing was changed.")
        if not can_be_had(registry, wanted):
            raise ConfigError(
                f"Version {version} of {registry.name} cannot be promoted: its files are neither in the working folder nor in "
                "MLflow. Restore one of the two from a backup, or promote another version: prdit models ls."
            )
        decision = _decision(
            "promoted", wanted, champion, champion_after=version, reason=reason, by=by, figures=figures
        )
        return _decide(registry, folder, decision)


def hold(
    registry: Registry, folder: Path, version: int, *, reason: str, by: str, figures: Mapping[str, Any] | None = None
) -> Decision:
    """Record that a challenger does not become champion; it keeps the alias `challenger`.

    Where the last decision is the same one, it is returned: nothing is recorded twice.

    Args: as for `promote`.
    Raises: as `promote`, ConfigError where there is no such version.
    """
    with _deciding(registry, folder):
        wanted, champion = _existing(registry, version), registry.find(CHAMPION)
        number = champion.version if champion else None
        decision = _decision("held", wanted, champion, champion_after=number, reason=reason, by=by, figures=figures)
        last = _history(folder).newest()
        if last and last.to_json() == decision.to_json() | {"created": last.created}:
            return last
        return _decide(registry, folder, decision)


def rollback(registry: Registry, folder: Path, *, reason: str = "", by: str = "command") -> Decision:
    """Make the champion before the last promotion champion again.

    Versions that are marked as refused, that MLflow does not have any more, or whose files are gone are passed over.

    Raises: ConfigError: there is nothing to roll back to; otherwise as `promote`.
    """
    with _deciding(registry, folder):
        versions = {one.version: one for one in registry.versions()}
        champion = next((one for one in versions.values() if CHAMPION in one.aliases), None)
        before = _champions_before(decisions(folder), champion.version if champion else None)
        allowed = [versions[number] for number in before if number in versions and not versions[number].refused]
        target = next((version for version in reversed(allowed) if can_be_had(registry, version)), None)
        if champion is None or target is None:
            raise ConfigError(_nothing_before(registry, champion, before, versions))
        why = reason or f"Version {champion.version} was rolled back to version {target.version} by hand."
        decision = _decision("rolled back", target, champion, champion_after=target.version, reason=why, by=by)
        return _decide(registry, folder, decision.model_copy(update={"challenger": None}))


def decisions(folder: Path) -> list[Decision]:
    """All decisions, oldest first. Raises: StorageError: one is damaged."""
    history = _history(folder)
    return [history.read(number) for number in history.numbers()]


def settle(registry: Registry, folder: Path) -> Decision | None:
    """Carry out the last decision where a process ended before it was; returns it then, else None.

    It is not where another was carried out since: by a person in MLflow's page, or by another working folder on the same registry.

    Raises: StorageError: it is damaged; RegistryUnavailableError.
    """
    history = _history(folder)
    numbers = history.numbers()
    if not numbers:
        return None
    last = history.read(numbers[-1])
    about = last.challenger if last.action == "held" else last.champion
    versions = registry.versions()
    version = next((one for one in versions if one.version == about), None)
    if version is None or version.tags.get(NUMBER) == _mark(numbers[-1], last):
        return None
    if _overtaken(last, version, versions):
        logger.info(
            "decision %d (%s) was not carried out, and another one was since: that one stays", numbers[-1], last.action
        )
        return None
    logger.warning("decision %d (%s) was not carried out to its end; it is now", numbers[-1], last.action)
    _carry_out(registry, numbers[-1], last)
    return last


# ---- deciding --------------------------------------------------------------------------------------------------------------


@contextmanager
def _deciding(registry: Registry, folder: Path) -> Iterator[Decision | None]:
    """One decision at a time; gives the one before where it had to be carried out first. Raises: LockedError."""
    with locked(folder / "lock", timeout_s=_WAIT_S):
        yield settle(registry, folder)


def _decide(registry: Registry, folder: Path, decision: Decision) -> Decision:
    history = _history(folder)
    history.update(lambda _: decision)
    _carry_out(registry, history.numbers()[-1], decision)
    return decision


def _carry_out(registry: Registry, number: int, decision: Decision) -> None:
    """Set aliases and tags as a decision says; a second time changes nothing."""
    about = decision.challenger if decision.action == "held" else decision.champion
    if about is None:
        return
    version = _existing(registry, about)
    if decision.action == "held":
        if CHALLENGER not in version.aliases:
            registry.set_alias(CHALLENGER, about)
    else:
        if CHAMPION not in version.aliases:
            registry.set_alias(CHAMPION, about)
        if CHALLENGER in version.aliases:
            registry.delete_alias(CHALLENGER)
        before = decision.champion_before
        if decision.action == "rolled back" and before is not None and registry.find(before):
            registry.tag(before, {DECISION: "rolled back from", REASON: decision.reason[:_MAX_TAG]})
    tags = {DECISION: decision.action, REASON: decision.reason[:_MAX_TAG]}
    if decision.figures:
        tags[FIGURES] = json.dumps(decision.figures, default=str)[:_MAX_TAG]
    registry.tag(about, tags, description=_description(number, decision))
    registry.tag(about, {NUMBER: _mark(number, decision)})  # last: what is not so marked is carried out again


def _overtaken(decision: Decision, about: ModelVersion, versions: Sequence[ModelVersion]) -> bool:
    """Whether something was decided after a decision that was not carried out to its end, about its version or its alias."""
    if _marked(about) > decision.created:
        return True
    alias = CHALLENGER if decision.action == "held" else CHAMPION
    holder = next((one for one in versions if alias in one.aliases), None)
    if holder is None or holder.version == about.version:
        return False
    if alias == CHALLENGER:  # a version that was trained later, and is judged next
        return holder.version > about.version or _marked(holder) > decision.created
    return holder.version != decision.champion_before or _marked(holder) > decision.created


def _marked(version: ModelVersion) -> str:
    """Time of the decision about a version that was carried out last, all of them in one form; empty: none was."""
    return version.tags.get(NUMBER, "").partition(" of ")[2]


def _mark(number: int, decision: Decision) -> str:
    """Which decision was carried out; with its time, as another working folder counts from 1, too."""
    return f"{number} of {decision.created}"


def _decision(
    action: Action,
    version: ModelVersion,
    champion: ModelVersion | None,
    *,
    champion_after: int | None,
    reason: str,
    by: str,
    figures: Mapping[str, Any] | None = None,
) -> Decision:
    return Decision(
        action=action,
        reason=reason,
        champion=champion_after,
        champion_before=champion.version if champion else None,
        challenger=version.version,
        checkpoint=version.checkpoint.digest,
        snapshot=version.tags.get(SNAPSHOT, ""),
        figures=dict(figures or {}),
        by=by,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def _description(number: int, decision: Decision) -> str:
    """What MLflow's page of a version shows: action, reason, figures."""
    lines = [
        f"**{decision.action}** (decision {number}, {decision.created[:19]} UTC, by {decision.by})",
        "",
        decision.reason,
    ]
    if decision.figures:
        lines += ["", "| figure | value |", "| --- | --- |"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in decision.figures.items()]
    if decision.snapshot:
        lines += ["", f"Trained on snapshot `{decision.snapshot[:19]}…`."]
    text = "\n".join(lines)
    rest = f"\n\n… (the rest is in decision {number} of the working folder: `prdit models show … --json` prints it)"
    return text if len(text) <= _MAX_DESCRIPTION else text[: _MAX_DESCRIPTION - len(rest)] + rest


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return (value if isinstance(value, str) else json.dumps(value, default=str)).replace("|", "\\|").replace("\n", " ")


# ---- what was decided before -----------------------------------------------------------------------------------------------


def _history(folder: Path) -> Numbered[Decision]:
    return Numbered(folder, Decision)


def _existing(registry: Registry, version: int) -> ModelVersion:
    found = registry.find(version)
    if found is None:
        numbers = ", ".join(str(one.version) for one in registry.versions()) or "none"
        raise ConfigError(
            f"MLflow has no version {version} of model {registry.name}; it has {numbers}. `prdit models ls` lists them."
        )
    return found


def _champions_before(past: list[Decision], champion: int | None) -> list[int]:
    """The champions below the present one, the last one last: a promotion puts one on top, a rollback takes those above it away."""
    stack: list[int] = []
    for decision in past:
        if decision.champion is None or decision.action not in ("promoted", "rolled back"):
            continue
        if decision.action == "rolled back" and decision.champion in stack:
            while stack[-1] != decision.champion:
                stack.pop()
            continue
        if decision.champion_before is not None and (not stack or stack[-1] != decision.champion_before):
            stack.append(
                decision.champion_before
            )  # it was made champion in MLflow's page, or before this folder was made
        stack.append(decision.champion)
    if stack and stack[-1] == champion:
        stack.pop()
    return [number for number in stack if number != champion]


def _nothing_before(
    registry: Registry, champion: ModelVersion | None, before: list[int], versions: Mapping[int, ModelVersion]
) -> str:
    if champion is None:
        return f"There is nothing to roll back: no version of {registry.name} is champion. `prdit models promote` makes one."
    if not before:
        return f"There is nothing to roll back to: version {champion.version} of {registry.name} is the first champion."
    why = []
    for number in dict.fromkeys(before):
        if number not in versions:
            why.append(f"MLflow has lost version {number}")
        elif versions[number].refused:
            why.append(f"version {number} is refused ({versions[number].refused})")
        else:
            why.append(f"the files of version {number} are neither in the working folder nor in MLflow")
    return f"There is nothing to roll back to: of the champions before version {champion.version}, {'; '.join(why)}."
