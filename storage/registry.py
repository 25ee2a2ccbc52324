"""The registered model in MLflow: versions are checkpoints, aliases say which is champion and which is challenger.

A version has all files of its checkpoint in MLflow, so that it can be fetched where the checkpoint itself is not. No path is sent:
a version says where its checkpoint lies below a working folder.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from storage.artifacts import PROVENANCE, Ref, load_provenance, verify_artifact
from storage.checkpoints import WEIGHTS_FILES
from storage.documents.checkpoint import Checkpoint
from storage.documents.provenance import Provenance
from storage.documents.split import Split
from storage.errors import ConfigError, DamagedArtifactError, InputError, MissingArtifactError, StorageError
from storage.files import naming_path, sha256_file, sha256_json
from storage.outbox import RefusedError, ServerAwayError, UploadError
from storage.tracking import TrackingUnavailableError, check_address

if TYPE_CHECKING:
    from storage.mlflow_server import Server

CHAMPION, CHALLENGER = "champion", "challenger"
MODEL = "prdit"
REFUSED = "prdit.refused"  # tag of a version that must not be promoted; its value says why
DIGEST, PLACE, SNAPSHOT = "prdit.digest", "prdit.place", "prdit.snapshot"  # tags of every version
PATIENTS, VOLUMES = "prdit.train_patients", "prdit.train_volumes"  # how many it was trained on, where that is known
FETCHED = "models"  # folder of a working folder, of checkpoints that came from MLflow

PLACES = re.compile(r"[A-Za-z0-9_.-]+/[0-9a-f]{32}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ABOUT = (
    "Checkpoints of prdit. The version with the alias `champion` is the one in use, `challenger` the one that was trained last. "
    "The description of a version says what was decided about it and why; `prdit models ls` lists all of them."
)
logger = logging.getLogger("prdit.registry")


class RegistryUnavailableError(TrackingUnavailableError, ConfigError):
    """MLflow does not answer at the address that was given, or refuses what was asked."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of the registered model.

    Attributes:
        version: its number.
        checkpoint: reference of the checkpoint on the disk it was trained on; it may be gone there (`checkpoint_of`). Its path is
            relative to the working folder where the registry was not given one.
        run_id: MLflow run that made it.
        aliases: such as `champion`.
        tags: of the version; `REFUSED` among them.
        created: UTC time.
        model_id: MLflow's id of its files.
    """

    version: int
    checkpoint: Ref
    run_id: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    model_id: str = ""

    @property
    def refused(self) -> str:
        """Why it must not be promoted; empty where it may."""
        return self.tags.get(REFUSED, "")


class Registry:
    """The registered model of one MLflow server, or of MLflow in a local file.

    Args:
        uri: tracking URI.
        name: of the registered model.
        workdir: working folder, below which the checkpoints of versions are looked for.
    Raises: RegistryUnavailableError: the server does not answer.
    """

    def __init__(self, uri: str, name: str = MODEL, *, workdir: Path | None = None) -> None:
        check_address(uri)
        self.uri, self.name = uri, name
        self.workdir = None if workdir is None else workdir.resolve()
        self._opened: Server | None = None
        if not _is_missing_file(uri):
            with self._answering():
                self._server().ping()

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first; those that prdit did not make are left out. Raises: RegistryUnavailableError."""
        if self._opened is None and _is_missing_file(self.uri):
            return []  # asking would make the file
        with self._answering():
            found = self._server().versions(self.name)
        versions = []
        for one in found:
            digest = one.tags.get(DIGEST, "")
            if not _DIGEST.fullmatch(digest):
                logger.warning("version %d of model %s is not of prdit, and is left out", one.number, self.name)
                continue
            place = one.tags.get(PLACE, "")
            if not PLACES.fullmatch(place):
                place = f"{FETCHED}/{digest.removeprefix('sha256:')}"
            ref = Ref(kind="checkpoint", uri=str((self.workdir or Path()) / place), digest=digest)
            created = datetime.fromtimestamp(one.created_ms / 1000, UTC).isoformat(timespec="seconds")
            versions.append(ModelVersion(one.number, ref, one.run_id, one.aliases, one.tags, created, one.model_id))
        return versions

    def find(self, name: str | int) -> ModelVersion | None:
        """A version by alias or number; None where there is none. Raises: RegistryUnavailableError."""
        text = str(name)
        matching = (one for one in self.versions() if text in one.aliases or text == str(one.version))
        return next(matching, None)

    def register(self, checkpoint: Ref, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """A version of a checkpoint; the one that there is already, where this checkpoint has one.

        All files of the checkpoint are put into MLflow first, so a version is never without them.

        Args:
            checkpoint: committed and whole.
            run_id: MLflow's id of the run that made it; empty: none is known.
            tags: further ones of a new version; those that say what the checkpoint is and what it was trained on are set anyway.
        Raises:
            InputError: a reference to something else.
            StorageError: the checkpoint is missing or damaged.
            RegistryUnavailableError: the server does not answer, or refuses it.
        """
        if checkpoint.kind != "checkpoint":
            raise InputError(f"Only checkpoints are registered; got a {checkpoint.kind} at {checkpoint.uri}.")
        verify_artifact(checkpoint)
        if known := self._of_digest(checkpoint.digest):
            return known
        facts = _facts(checkpoint)
        with self._answering(), TemporaryDirectory() as folder:
            server = self._server()
            if run_id and not server.has_run(run_id):
                raise InputError(f"MLflow at {self.uri} has no run {run_id}; give the id of the run that made it.")
            record = {"name": f"checkpoint-{facts['prdit.family']}", "digest": checkpoint.digest, "facts": facts}
            experiment = "" if run_id else server.experiment(self.name, {}, _artifacts(self.uri))
            model_id = server.upload_checkpoint(run_id, experiment, record, _files(checkpoint, Path(folder)))
            if known := self._of_digest(checkpoint.digest):  # another process has registered it meanwhile
                return known
            all_tags = {**{key: str(value) for key, value in tags.items()}, **facts}
            number = server.create_version(self.name, model_id, run_id, all_tags, _ABOUT)
        made = self.find(number)
        if made is None:
            raise RegistryUnavailableError(
                f"MLflow at {self.uri} does not list version {number} that it has just made."
            )
        return made

    def set_alias(self, alias: str, version: int) -> None:
        """Let an alias name a version. Raises: RegistryUnavailableError."""
        with self._answering():
            self._server().set_alias(self.name, alias, version)

    def delete_alias(self, alias: str) -> None:
        """Remove an alias; nothing happens where there is none. Raises: RegistryUnavailableError."""
        with self._answering():
            self._server().delete_alias(self.name, alias)

    def tag(self, version: int, tags: Mapping[str, str], *, description: str | None = None) -> None:
        """Set tags of a version, and its description where one is given. Raises: RegistryUnavailableError."""
        with self._answering():
            self._server().tag_version(self.name, version, tags, description)

    def fetch(self, version: ModelVersion, folder: Path) -> None:
        """Download the files of a version into a folder, each verified by hash; the record is written last.

        Args:
            version: of this registry.
            folder: new.
        Raises:
            DamagedArtifactError: MLflow has other bytes than were registered, or names of files that lead out of the folder.
            MissingArtifactError: MLflow does not have all of them any more.
            RegistryUnavailableError: the server does not answer.
        """
        with self._answering():
            with TemporaryDirectory() as temporary:
                record = Provenance.read(self._download(version, PROVENANCE, Path(temporary)))
            _check_record(record, version)
            for name, digest in record.files.items():
                target = folder / PurePosixPath(name).parent
                with naming_path(target):
                    target.mkdir(parents=True, exist_ok=True)
                    got = self._download(version, name, target)
                if got != folder / name or sha256_file(got) != digest:
                    raise DamagedArtifactError(
                        f"{name} of version {version.version} in MLflow is not what was registered (SHA-256 differs). Restore "
                        "MLflow's artifacts from a backup, or use another version: prdit models ls."
                    )
        record.save(folder)

    def _download(self, version: ModelVersion, name: str, folder: Path) -> Path:
        """Fetch one file. An answer that it is not there is no failure of the server, and the same at every later call."""
        try:
            return self._server().download_model_file(version.model_id, name, folder)
        except (ServerAwayError, RefusedError, UploadError) as error:
            if self._server().has_model_file(version.model_id, name):
                raise
            raise MissingArtifactError(
                f"The files of version {version.version} of {self.name} are gone: MLflow at {self.uri} does not have its {name} "
                "any more, and the working folder has no whole copy. Restore one of the two from a backup, promote another version "
                "(`prdit models promote`), or train a new one."
            ) from error

    def has_files(self, version: ModelVersion) -> bool:
        """Whether MLflow lists record, description and weights of a version; content is verified when it is fetched.

        Raises: RegistryUnavailableError: the server does not answer.
        """
        with self._answering():
            try:
                names = self._server().model_files(version.model_id)
            except RefusedError:  # the model is deleted
                return False
            return {PROVENANCE, Checkpoint.NAME} <= names and bool(names & set(WEIGHTS_FILES.values()))

    def _of_digest(self, digest: str) -> ModelVersion | None:
        return next((one for one in self.versions() if one.checkpoint.digest == digest), None)

    def _server(self) -> "Server":
        if self._opened is None:
            from storage.mlflow_server import Server  # importing MLflow takes seconds

            self._opened = Server(self.uri)
        return self._opened

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (ServerAwayError, RefusedError, UploadError) as error:
            raise RegistryUnavailableError(
                f"The registered model {self.name!r} of MLflow at {self.uri} cannot be used "
                f"({str(error) or type(error).__name__}). Start it (`prdit up`), or give its address in MLFLOW_TRACKING_URI."
            ) from error


def is_model_name(text: str) -> bool:
    """Whether a text names a version of a registered model: `models:/prdit@champion`, `models:/prdit/3`."""
    return text.startswith("models:")


# ---- from a checkpoint to MLflow -------------------------------------------------------------------------------------------


def _facts(checkpoint: Ref) -> dict[str, str]:
    """Tags that say what a checkpoint is and what it was trained on."""
    info, record = Checkpoint.load(checkpoint.path), load_provenance(checkpoint)
    place = f"{checkpoint.path.resolve().parent.name}/{checkpoint.path.resolve().name}"
    facts = {
        DIGEST: checkpoint.digest,
        "prdit.family": info.family,
        "prdit.step": str(info.step),
        "prdit.volume_size": str(info.view.size),
        "prdit.stage": record.stage,
    }
    if PLACES.fullmatch(place):
        facts[PLACE] = place
    if "snapshot" in record.inputs:
        facts[SNAPSHOT] = record.inputs["snapshot"].digest
    if "split" in record.inputs:
        with suppress(StorageError):
            split = Split.load(record.inputs["split"].path)
            facts[VOLUMES] = str(len(split.role("train")))
            if patients := split.patients.get("train"):
                facts[PATIENTS] = str(len(patients))
    return facts


def _files(checkpoint: Ref, temporary: Path) -> dict[str, Path]:
    """All files of a checkpoint, the averaged weights first, and last its record without any path."""
    record = load_provenance(checkpoint).with_places(lambda role, ref: "")
    record.save(temporary)
    first = [name for name in (WEIGHTS_FILES["ema"], Checkpoint.NAME) if name in record.files]
    names = [*first, *(name for name in record.files if name not in first)]
    return {**{name: checkpoint.path / name for name in names}, PROVENANCE: temporary / PROVENANCE}


def _check_record(record: Provenance, version: ModelVersion) -> None:
    """Refuse a record that is not of the version, or names files outside its folder, before anything is written by it."""
    outside = [name for name in record.files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    digest = "sha256:" + sha256_json({"kind": "checkpoint", "files": record.files})
    if outside or record.kind != "checkpoint" or not digest == record.digest == version.checkpoint.digest:
        raise DamagedArtifactError(
            f"What MLflow has of version {version.version} is not the checkpoint {version.checkpoint.digest[:19]}… that was "
            "registered. Restore MLflow's artifacts from a backup, or use another version: prdit models ls."
        )


def _is_missing_file(uri: str) -> bool:
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists()


def _artifacts(uri: str) -> str | None:
    """Where a new experiment keeps its artifacts: beside a local file; None: where the server does."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts").resolve().as_uri()
    return None
