"""From `models:/prdit@champion` to a checkpoint on this disk: where it was trained or fetched before, else fetched now."""

import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path

from storage.artifacts import PROVENANCE, Ref, committed_ref, load_provenance, verify_artifact
from storage.documents.provenance import Provenance
from storage.errors import ConfigError, StorageError
from storage.files import naming_path, temporary_path
from storage.locks import locked
from storage.registry import CHAMPION, FETCHED, MODEL, PLACE, PLACES, ModelVersion, Registry

_NAME = re.compile(r"models:/+(?P<model>[^/@\s]+)(?:@(?P<alias>[^/@\s]+)|/(?P<number>\d+))")
logger = logging.getLogger("prdit.registry")


def resolve(text: str, uri: str, workdir: Path) -> Ref:
    """The checkpoint that `models:/<model>@<alias>` or `models:/<model>/<version>` names, whole and on this disk.

    Args:
        text: the name.
        uri: tracking URI.
        workdir: working folder; what is not below it is fetched into its folder `models`.
    Raises:
        ConfigError: it is no such name, or MLflow has no such model, alias or version.
        RegistryUnavailableError: the server does not answer.
        StorageError: the files cannot be had.
    """
    match = _NAME.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} names no model: expected models:/{MODEL}@{CHAMPION}, or models:/{MODEL}/3 for a version."
        )
    registry = Registry(uri, match["model"], workdir=workdir)
    wanted = match["alias"] or str(int(match["number"]))
    versions = registry.versions()
    found = [one for one in versions if wanted in (one.aliases if match["alias"] else (str(one.version),))]
    if not found:
        known = ", ".join(sorted(alias for one in versions for alias in one.aliases)) or "none"
        numbers = ", ".join(str(one.version) for one in versions) or "none"
        what = "alias" if match["alias"] else "version"
        raise ConfigError(
            f"MLflow at {uri} has no {what} {wanted!r} of model {match['model']!r}: aliases {known}; versions {numbers}. "
            "`prdit models ls` lists them."
        )
    if found[0].refused:
        logger.warning("version %d of %s must not be promoted: %s", found[0].version, match["model"], found[0].refused)
    return checkpoint_of(registry, found[0], workdir)


def checkpoint_of(registry: Registry, version: ModelVersion, workdir: Path) -> Ref:
    """The checkpoint of a version, verified: where it was trained, where it was fetched before, else fetched now.

    Args:
        registry: of the version.
        version: whose checkpoint is wanted.
        workdir: working folder.
    Raises:
        RegistryUnavailableError: it has to be fetched, and the server does not answer.
        MissingArtifactError: it is nowhere any more; DamagedArtifactError: what MLflow has of it is damaged.
    """
    digest = version.checkpoint.digest
    folder = workdir.resolve() / FETCHED / digest.removeprefix("sha256:")
    here = workdir.resolve() / version.tags.get(PLACE, "") if PLACES.fullmatch(version.tags.get(PLACE, "")) else folder
    for place in dict.fromkeys((here, folder)):
        if ref := _whole(place, digest):
            return ref
    with locked(workdir / FETCHED / "lock"):
        if ref := _whole(folder, digest):  # another process has fetched it meanwhile
            return ref
        logger.info("fetching version %d of %s from MLflow", version.version, registry.name)
        temporary = temporary_path(folder)
        try:
            with naming_path(folder):
                temporary.mkdir(parents=True)
            registry.fetch(version, temporary)
            _set_places(temporary, workdir.resolve())
            with naming_path(folder):
                if folder.exists():  # damaged
                    shutil.rmtree(folder)
                temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    ref = Ref(kind="checkpoint", uri=str(folder), digest=digest)
    verify_artifact(ref)
    return ref


def can_be_had(registry: Registry, version: ModelVersion) -> bool:
    """Whether `checkpoint_of` would find the files of a version, by their names: here, or else in MLflow. No byte is verified.

    Raises: RegistryUnavailableError: they are not here, and the server does not answer.
    """
    digest = version.checkpoint.digest
    fetched = (registry.workdir or Path()) / FETCHED / digest.removeprefix("sha256:")
    return any(_is_there(place, digest) for place in (version.checkpoint.path, fetched)) or registry.has_files(version)


def _is_there(folder: Path, digest: str) -> bool:
    with suppress(StorageError):
        ref = committed_ref(folder)
        if ref is not None and ref.digest == digest:
            return all((folder / name).is_file() for name in load_provenance(ref).files)
    return False


def _whole(folder: Path, digest: str) -> Ref | None:
    """The checkpoint in a folder, where it is undamaged and the one that is meant."""
    try:
        ref = committed_ref(folder)
        if ref is None or ref.kind != "checkpoint" or ref.digest != digest:
            return None
        verify_artifact(ref)
    except StorageError as error:
        logger.warning("a copy of the checkpoint cannot be used: %s", error)
        return None
    return ref


def _set_places(folder: Path, workdir: Path) -> None:
    """Say in a fetched record where its inputs are on this disk; where they are not, a place that does not exist."""
    known: dict[str, str] = {}
    for path in sorted(workdir.glob(f"*/*/{PROVENANCE}")):
        with suppress(StorageError):
            record = Provenance.read(path)
            known.setdefault(record.digest, str(path.parent))
            for ref in record.inputs.values():
                if ref.uri and ref.path.exists():
                    known.setdefault(ref.digest, ref.uri)
    record = Provenance.load(folder)
    elsewhere = workdir / FETCHED / "not-on-this-machine"
    record.with_places(lambda role, ref: known.get(ref.digest, str(elsewhere / role))).save(folder)
