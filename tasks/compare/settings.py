"""What differs between runs in configuration, code and data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from storage.documents.comparison import Setting
from storage.documents.provenance import Provenance
from tasks.compare.runs import Run

_ORDER = ("snapshot", "split")  # of the data; trainings, sample and evaluate follow in the order they ran


def differing_settings(runs: Sequence[Run]) -> list[Setting]:
    """Settings of the stages that made the reports, where they are not the same in all runs, in the order of the pipeline.

    Recipe and code version of a stage count as its settings, and so do the digests of snapshot and split. Digests of what the
    stages made follow from these, and are not among them.
    """
    by_run = {run.label: _settings(run) for run in runs}
    places: dict[tuple[str, str], None] = {}
    for found in by_run.values():
        places |= dict.fromkeys(found)
    stages = _ordered([stage for stage, _ in places])
    rows = []
    for stage, key in sorted(places, key=lambda place: stages.index(place[0])):
        values = {label: found[stage, key] for label, found in by_run.items() if (stage, key) in found}
        if len(values) < len(runs) or any(value != next(iter(values.values())) for value in values.values()):
            rows.append(Setting(stage=stage, key=key, values=values))
    return rows


def _settings(run: Run) -> dict[tuple[str, str], Any]:
    """Values by stage and dotted key."""
    found: dict[tuple[str, str], Any] = {("snapshot", "digest"): run.snapshot.digest}
    records = [node.record for node in reversed(run.nodes) if node.record is not None]
    for record in [*records, run.provenance]:
        found |= {(record.stage, key): value for key, value in _of_record(record)}
    found["split", "digest"] = run.split_ref.digest
    return found


def _of_record(record: Provenance) -> Iterator[tuple[str, Any]]:
    yield from _leaves(record.config)
    yield "recipe", record.recipe
    yield "code_version", record.code_version


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:  # an empty one counts as a value: a metric that has no settings
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _ordered(stages: Sequence[str]) -> list[str]:
    """Each stage once: data, trainings as they follow each other, sample, evaluate."""
    last = ("sample", "evaluate")
    once = list(dict.fromkeys(stages))
    middle = [stage for stage in once if stage not in (*_ORDER, *last)]
    return [*(s for s in _ORDER if s in once), *middle, *(s for s in last if s in once)]
