"""Lineage of one artifact: back to the volumes and patients that it was made from, forward to what was made of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.artifacts import Ref, committed_ref
from storage.documents.run_record import RunDocument
from storage.documents.split import Split
from storage.errors import ConfigError, StorageError
from storage.registry import ModelVersion
from storage.snapshots import load_snapshot
from storage.tombstones import tombstones
from tasks.patients.made import Made, affected_by, by_digest, listed_by, roles_of

_KEY = re.compile(r"[0-9a-f]{8,32}")
_SHORT = 19


@dataclass(frozen=True)
class Lineage:
    """What something was made from, and what was made of it.

    Attributes:
        what: a sentence that names it.
        back: artifacts that it was made from, nearest first; snapshots and splits among them.
        volumes: ids by role; without a role: `all`.
        patients: patient keys by role.
        forgotten: ids among the volumes whose patient was forgotten since.
        forward: what was made of it, in the order of its making, and how.
        versions: registered versions among it and what was made of it.
        runs: ids of MLflow runs by digest.
    """

    what: str
    back: list[Made] = field(default_factory=list)
    volumes: dict[str, list[str]] = field(default_factory=dict)
    patients: dict[str, list[str]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    forward: list[tuple[Made, str]] = field(default_factory=list)
    versions: list[ModelVersion] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "what": self.what,
            "back": [self._one(made) for made in self.back],
            "volumes": self.volumes,
            "patients": self.patients,
            "forgotten": self.forgotten,
            "forward": [self._one(made) | {"how": how} for made, how in self.forward],
            "versions": [
                {
                    "version": one.version,
                    "aliases": list(one.aliases),
                    "checkpoint": one.checkpoint.digest,
                    "tags": dict(one.tags),
                }
                for one in self.versions
            ],
        }

    def text(self) -> str:
        """For people: a tree."""
        lines = [self.what, "made from"]
        lines += [f"  {'  ' * place}{self._line(made)}" for place, made in enumerate(self.back)] or [
            "  nothing that is recorded"
        ]
        for role, names in self.volumes.items():
            gone = len(set(names) & set(self.forgotten))
            note = f", {gone} of them forgotten" if gone else ""
            lines.append(f"  {role}: {len(names)} volumes of {len(self.patients.get(role, []))} patients{note}")
            lines += [f"    volume {name}{' (forgotten)' if name in self.forgotten else ''}" for name in names]
            lines += [f"    patient {key}" for key in self.patients.get(role, [])]
        lines.append("made of it")
        lines += [f"  {self._line(made)} ({how})" for made, how in self.forward] or ["  nothing that is recorded"]
        for version in self.versions:
            aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
            lines.append(
                f"  registered: version {version.version}{aliases}, checkpoint {version.checkpoint.digest[:_SHORT]}…"
            )
        return "\n".join(lines)

    def _one(self, made: Made) -> dict[str, Any]:
        fields = {
            "kind": made.kind,
            "stage": made.stage,
            "digest": made.digest,
            "uri": made.uri,
            "created": made.created,
        }
        return fields | {"forgotten": made.forgotten, "mlflow_runs": self.runs.get(made.digest, [])}

    def _line(self, made: Made) -> str:
        runs = self.runs.get(made.digest, [])
        parts = [made.kind, made.stage, f"{made.digest[:_SHORT]}…", made.uri, *(f"MLflow {run}" for run in runs)]
        return " ".join(filter(None, parts)) + (f": {made.forgotten}" if made.forgotten else "")


@dataclass(frozen=True)
class Known:
    """Everything that a lineage is looked up in.

    Attributes:
        store: folder of the volume store.
        workdirs: working folders.
        records: every artifact that is known.
        runs: digest by MLflow run id.
        versions: registered versions.
    """

    store: Path
    workdirs: Sequence[Path]
    records: Sequence[Made]
    runs: Mapping[str, str] = field(default_factory=dict)
    versions: Sequence[ModelVersion] = ()


def of_artifacts(refs: Sequence[Ref], known: Known, what: str) -> Lineage:
    """The lineage of artifacts: of one, or of all that a run made.

    Args:
        refs: of them.
        known: where to look.
        what: a sentence that names them.
    """
    made = by_digest([*known.records, *(Made(ref.kind, ref.digest, ref.kind, uri=ref.uri) for ref in refs)])
    back = _back(refs, made)
    roles: dict[str, list[str]] = {}
    for one in back:  # what was nearest says most: a split has roles, a snapshot has none
        found = _roles(one, made)
        if found:
            roles = found
            break
    names = {name for each in roles.values() for name in each}
    forward = _forward({ref.digest for ref in refs}, made)
    digests = {one.digest for one in [*back, *(one for one, _ in forward)]}
    snapshots = [ref for one in back for ref in one.inputs.values() if ref.kind == "snapshot"]
    return Lineage(
        what,
        back,
        roles,
        _patients(roles, back, [*snapshots, *(one.ref for one in back if one.kind == "snapshot")], known.store),
        sorted(names & _gone(known.store)),
        forward,
        [version for version in known.versions if version.checkpoint.digest in digests],
        _by_digest(known.runs),
    )


def of_volumes(volume_ids: Iterable[str], key: str, known: Known, what: str) -> Lineage:
    """The lineage of volumes of one patient: nothing before them, and what they went into.

    Args:
        volume_ids: of the patient.
        key: patient key.
        known: where to look.
        what: a sentence that names them.
    """
    names = sorted(volume_ids)
    affected = affected_by(names, known.records, known.store)
    digests = {one.made.digest for one in affected if one.learned}
    return Lineage(
        what,
        [],
        {"all": names},
        {"all": [key]},
        sorted(set(names) & _gone(known.store)),
        [(one.made, one.how) for one in affected],
        [version for version in known.versions if version.checkpoint.digest in digests],
        _by_digest(known.runs),
    )


def refs_of_run(text: str, workdirs: Sequence[Path]) -> tuple[list[Ref], str] | None:
    """What a run made, by its name, the folder of its record, `latest`, or its id in MLflow; None where there is no such run."""
    for workdir in workdirs:
        runs = workdir / RunDocument.FOLDER
        places = [Path(text), runs / text]
        if text == "latest" and (runs / RunDocument.LATEST).is_file():
            return _made_by(RunDocument.latest(runs)), "run latest"
        for folder in places:
            if (folder / RunDocument.NAME).is_file():
                return _made_by(RunDocument.load(folder)), f"run {folder.resolve().name}"
        for path in RunDocument.paths(workdir):
            try:
                record = RunDocument.read(path)
            except StorageError:
                continue
            if text in (record.mlflow_run_id, record.prefect_flow_run_id):
                return _made_by(record), f"run {path.parent.name}"
            for stage in record.stages.values():
                if text == stage.mlflow_run_id:
                    return [stage.ref], f"{stage.ref.kind} of run {path.parent.name}"
    return None


def ref_of(text: str, known: Known) -> Ref | None:
    """The artifact that a text names: its directory, its reference as JSON, or 8 digits or more of its digest or key."""
    if text.lstrip().startswith("{"):
        try:
            return Ref.model_validate_json(text)
        except ValueError as error:
            raise ConfigError(f'{text!r} is not a reference {{"kind", "uri", "digest"}}: {error}') from error
    if Path(text).is_dir() and (found := committed_ref(Path(text))):
        return found
    digits = text.removeprefix("sha256:").removesuffix("…")
    if not re.fullmatch(r"[0-9a-f]{8,64}", digits):
        return None
    alike = [one for one in known.records if one.digest.startswith(f"sha256:{digits}") or Path(one.uri).name == digits]
    return by_digest(alike)[alike[0].digest].ref if alike else None


def looks_like_key(text: str) -> bool:
    """Whether a text may be a patient key, or the beginning of one."""
    return bool(_KEY.fullmatch(text))


def _made_by(record: RunDocument) -> list[Ref]:
    return [stage.ref for stage in record.stages.values()]


def _back(refs: Sequence[Ref], made: Mapping[str, Made]) -> list[Made]:
    """Everything that artifacts were made from, themselves first: what came last in the chain comes first."""
    found: dict[str, Made] = {}
    open_ = sorted(refs, key=_late)
    while open_:
        ref = open_.pop(0)
        if ref.digest in found:
            continue
        one = made.get(ref.digest) or Made(ref.kind, ref.digest, "", uri=ref.uri)
        found[ref.digest] = one
        open_ = sorted([*open_, *one.inputs.values()], key=_late)
    return list(found.values())


def _late(ref: Ref) -> int:
    order = ("report", "samples", "measurement", "checkpoint", "split", "verdicts", "snapshot", "source")
    return order.index(ref.kind)


def _forward(digests: set[str], made: Mapping[str, Made]) -> list[tuple[Made, str]]:
    found: dict[str, Made] = {}
    reached = set(digests)
    changed = True
    while changed:
        changed = False
        for one in made.values():
            if one.digest not in reached and any(ref.digest in reached for ref in one.inputs.values()):
                found[one.digest], changed = one, True
                reached.add(one.digest)
    return [
        (one, ", ".join(role for role, ref in one.inputs.items() if ref.digest in reached))
        for one in sorted(found.values(), key=lambda one: (one.created, one.digest))
    ]


def _roles(one: Made, made: Mapping[str, Made]) -> dict[str, list[str]]:
    if one.kind == "split" and one.uri:
        found = roles_of({"split": one.ref}, made)
    elif one.kind == "snapshot" and one.uri:
        listed = listed_by(one.ref)
        found = None if listed is None else {"all": listed}
    else:
        found = roles_of(one.inputs, made) if "snapshot" in one.inputs else None
    return {role: sorted(names) for role, names in (found or {}).items()}


def _patients(
    roles: Mapping[str, Sequence[str]], back: Sequence[Made], snapshots: Sequence[Ref], store: Path
) -> dict[str, list[str]]:
    """Patient keys by role: as the snapshots list the volumes, and of forgotten ones as their tombstones say."""
    owner: dict[str, str] = {name: grave.patient_key for grave in tombstones(store) for name in grave.volume_ids}
    for ref in snapshots:
        try:
            owner |= {name: volume.patient_key for name, volume in load_snapshot(ref).volumes.items()}
        except (StorageError, ValueError):
            continue
    for one in back:
        if one.kind == "split" and one.uri and not owner:
            return {role: sorted(keys) for role, keys in Split.load(Path(one.uri)).patients.items()}
    return {role: sorted({owner[name] for name in names if name in owner}) for role, names in roles.items()}


def _gone(store: Path) -> set[str]:
    return {name for grave in tombstones(store) for name in grave.volume_ids}


def _by_digest(runs: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run_id, digest in sorted(runs.items()):
        found.setdefault(digest, []).append(run_id)
    return found
