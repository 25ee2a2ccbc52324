"""References and the artifacts they point to.

A stage works in a directory named by its cache key and commits it by writing `provenance.json` last. The record lists
the SHA-256 of every file, the inputs, the configuration and the recipe and code versions; the artifact's digest is the hash of
kind and files. A directory without a record is unfinished work; one whose files changed is damaged.
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.documents.provenance import Provenance
from storage.errors import DamagedArtifactError, MissingArtifactError
from storage.files import naming_path, sha256_bytes, sha256_file, sha256_json, write_bytes_atomic
from storage.refs import Kind, Ref

__all__ = [
    "PROVENANCE",
    "SCRATCH",
    "Kind",
    "Ref",
    "artifact_files",
    "commit_artifact",
    "committed_ref",
    "input_ref",
    "load_provenance",
    "redact_artifact",
    "stage_key",
    "verify_artifact",
]

PROVENANCE = Provenance.NAME
_TEMPORARY = re.compile(r"\..*\.tmp")  # of a write under way, or left by a killed one
SCRATCH = "work"  # resumable state, locks and logs of a stage: beside the artifact, not part of it


def stage_key(stage: str, recipe: int, inputs: dict[str, Ref], config: dict[str, Any]) -> str:
    """The cache key of one stage: stage, recipe version, input digests and configuration digest, as 32 hex digits."""
    digests = {name: ref.digest for name, ref in inputs.items()}
    return sha256_json({"stage": stage, "recipe": recipe, "inputs": digests, "config": config})[:32]


def artifact_files(directory: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 of every file of an artifact (scratch and the record itself left out)."""
    found: dict[str, str] = {}
    for root, folders, names in os.walk(directory):
        here = Path(root)
        left_out = {SCRATCH, PROVENANCE} if here == directory else set()
        folders[:] = [name for name in folders if name not in left_out and not _TEMPORARY.fullmatch(name)]
        for name in names:
            if name in left_out or _TEMPORARY.fullmatch(name):
                continue
            path = here / name
            found[path.relative_to(directory).as_posix()] = sha256_file(path)
    return dict(sorted(found.items()))


def commit_artifact(
    directory: Path,
    kind: Kind,
    *,
    stage: str,
    recipe: int,
    inputs: dict[str, Ref],
    config: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> Ref:
    """Hash a finished stage directory, write its provenance record (last, atomically) and return its reference.

    Args:
        directory: the stage's directory, complete.
        kind: kind of the artifact.
        stage: stage name, as in the cache key.
        recipe: version of the stage's arithmetic.
        inputs: references the stage read, by role.
        config: resolved configuration of the stage.
        extra: further fields of the record (`code_version`, `mlflow_run_id`, `seconds`).
    """
    files = artifact_files(directory)
    digest = "sha256:" + sha256_json({"kind": kind, "files": files})
    record = Provenance(
        kind=kind,
        digest=digest,
        stage=stage,
        recipe=recipe,
        inputs=inputs,
        config=config,
        files=files,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **(extra or {}),
    )
    record.save(directory)
    return Ref(kind=kind, uri=str(directory.resolve()), digest=digest)


def load_provenance(ref: Ref) -> Provenance:
    """The provenance record of an artifact.

    Raises:
        MissingArtifactError: nothing committed at the uri.
        DamagedArtifactError: the record cannot be read, or has another shape.
        VersionError: written in a version that this prdit does not read.
    """
    return Provenance.load(ref.path)


def input_ref(ref: Ref, name: str) -> Ref:
    """The reference of one input of an artifact, by role (`"checkpoint"`, `"split"`, `"snapshot"`, `"start"`).

    Raises: MissingArtifactError: it has no such input; also the errors of `load_provenance`.
    """
    inputs = load_provenance(ref).inputs
    if name not in inputs:
        raise MissingArtifactError(f"{ref.kind} at {ref.uri} records no input {name!r}; it has {sorted(inputs)}.")
    return inputs[name]


def verify_artifact(ref: Ref) -> None:
    """Check every file of an artifact against its record and the record against the reference.

    Raises:
        MissingArtifactError: nothing is committed there, or a file is gone.
        DamagedArtifactError: a file has other bytes than were committed, or the reference names another digest.
        VersionError: the record was written in a version that this prdit does not read.
    """
    record = load_provenance(ref)
    if record.kind != ref.kind:
        raise DamagedArtifactError(f"{ref.uri} holds a {record.kind}, the reference says {ref.kind}. Correct it.")
    for name, committed in record.files.items():
        path, digest = ref.path / name, record.redacted.get(name, committed)
        if not digest and not path.exists():
            continue  # it showed a patient who was forgotten
        if not path.is_file():
            raise MissingArtifactError(
                f"{path} is missing from the committed {ref.kind} {ref.digest[:19]}…. Restore it, or run the stage again."
            )
        if sha256_file(path) != digest:
            raise DamagedArtifactError(
                f"{path} was changed after it was committed (SHA-256 differs). Restore it, or run the stage again."
            )
    digest = "sha256:" + sha256_json({"kind": ref.kind, "files": record.files})
    if not digest == record.digest == ref.digest:
        raise DamagedArtifactError(
            f"The record at {ref.uri} has digest {record.digest[:19]}…, its files {digest[:19]}…, "
            f"the reference {ref.digest[:19]}…. Restore it, or run the stage again."
        )


def committed_ref(directory: Path) -> Ref | None:
    """The reference of the artifact committed in a directory, or None where none is (files are not checked).

    Raises: DamagedArtifactError, VersionError: there is a record that cannot be used.
    """
    try:
        record = Provenance.load(directory)
    except MissingArtifactError:
        return None
    return Ref(kind=record.kind, uri=str(directory.resolve()), digest=record.digest)


def redact_artifact(directory: Path, changes: dict[str, bytes | None], *, forgotten: str = "") -> None:
    """Take what says or shows something of a forgotten patient out of a committed artifact, which keeps its digest.

    The record goes first: after a kill in between, the same call makes the rest.

    Args:
        directory: of the artifact.
        changes: new content by relative path; None: the file is removed. Only files of the artifact.
        forgotten: sentence for `Provenance.forgotten`; empty: the one that is there stays.
    Raises: StorageError: the record cannot be read; UnwritableError.
    """
    record = Provenance.load(directory)
    hashes = {name: "" if data is None else sha256_bytes(data) for name, data in changes.items()}
    update = {"redacted": dict(sorted({**record.redacted, **hashes}.items()))}
    new = record.model_copy(update=update | ({"forgotten": forgotten} if forgotten else {}))
    if new != record:
        new.save(directory)
    for name, data in changes.items():
        with naming_path(directory / name):
            if data is None:
                (directory / name).unlink(missing_ok=True)
            else:
                write_bytes_atomic(directory / name, data)
