"""What MLflow has of a patient: artifacts that say or show something, and runs, models and versions that learned from one."""

import logging
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from storage.artifacts import PROVENANCE
from storage.documents.provenance import Provenance
from storage.errors import StorageError
from storage.outbox import RefusedError, ServerAwayError
from storage.registry import CHALLENGER, CHAMPION, DIGEST, REFUSED, ModelVersion, Registry
from storage.tracking import TrackingUnavailableError
from tasks.patients.made import Made
from tasks.patients.redact import TEXTS, without

FORGOTTEN = (
    "prdit.forgotten"  # tag of runs and models that learned from a patient who was forgotten; its value says when
)
_SHOWING = ("evaluate", "ingest", "split")  # stages whose runs have files that name volumes
_STAGE = "prdit.stage"
logger = logging.getLogger("prdit.patients")


class Tracked:
    """One MLflow server, or MLflow in a local file.

    Args:
        uri: its address.
    Raises: TrackingUnavailableError: it does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        from storage.mlflow_server import Server

        try:
            self._server: Server = Server(uri)
            self._server.ping()
            self._runs = self._server.all_runs()
        except (ServerAwayError, RefusedError) as error:
            raise TrackingUnavailableError(
                f"MLflow at {uri} does not answer ({error}), so what it has of a patient is not known. Nothing was changed. "
                "Start it (`prdit up`), or set MLFLOW_TRACKING_URI to its address, and run this again."
            ) from error

    def made(self, known: Collection[str]) -> list[Made]:
        """What the runs made, by the records that they have; without the artifacts of known digests."""
        found = []
        for run_id, tags in self._runs.items():
            if not tags.get(DIGEST) or tags[DIGEST] in known or PROVENANCE not in self._server.artifact_names(run_id):
                continue
            where = f"{PROVENANCE} of MLflow run {run_id}"
            try:
                record = Provenance.parse_without_uris(self._server.read_artifact(run_id, PROVENANCE), where)
            except StorageError as error:
                logger.warning("what a run was made from is not known: %s", error)
                continue
            inputs = record.inputs
            found.append(Made(record.kind, record.digest, record.stage, inputs, "", record.created, "", run_id))
        return found

    def runs_of(self, digests: Collection[str]) -> dict[str, str]:
        """Runs that made or found artifacts: digest by run id."""
        return {run_id: tags[DIGEST] for run_id, tags in self._runs.items() if tags.get(DIGEST) in digests}

    def mark(self, digests: Collection[str], sentence: str) -> int:
        """Tag the runs and models of artifacts that learned from a forgotten patient; how many runs.

        Raises: ServerAwayError, RefusedError.
        """
        runs = [run_id for run_id in self.runs_of(digests) if self._runs[run_id].get(FORGOTTEN) != sentence]
        for run_id in runs:
            self._server.tag_run(run_id, {FORGOTTEN: sentence, REFUSED: sentence})
        self._server.tag_models(digests, {FORGOTTEN: sentence, REFUSED: sentence})
        return len(runs)

    def redact(self, words: Collection[str], volume_ids: Collection[str], text: str = "") -> list[str]:
        """Take what says or shows something of a patient out of the artifacts of runs; `run id/path` of what was changed.

        Args:
            words: what names the patient.
            volume_ids: of the patient; a split may go on naming them.
            text: PatientID, where it is known.
        Raises: ServerAwayError, RefusedError, UploadError.
        """
        changed = []
        for run_id, tags in self._runs.items():
            if tags.get(_STAGE) not in _SHOWING and "prdit.compare" not in tags:
                continue
            for name in [*self._server.artifact_names(run_id), *self._server.artifact_names(run_id, "compare")]:
                if PurePosixPath(name).suffix not in TEXTS:
                    continue
                kept = {*words, *(() if tags.get(_STAGE) == "split" else volume_ids)}
                left = without(name, self._server.read_artifact(run_id, name), kept, text)
                if left is not None:
                    self._server.replace_artifact(run_id, name, left)
                    changed.append(f"{run_id}/{name}")
        return changed


def versions(uri: str, digests: Collection[str]) -> list[ModelVersion]:
    """Registered versions of checkpoints. Raises: TrackingUnavailableError."""
    return [version for version in Registry(uri).versions() if version.checkpoint.digest in digests]


def refuse(uri: str, found: Iterable[ModelVersion], sentence: str) -> None:
    """Mark registered versions, so that none of them is promoted. Raises: TrackingUnavailableError."""
    registry = Registry(uri)
    for version in found:
        if version.tags.get(REFUSED) != sentence:
            registry.tag(version.version, {REFUSED: sentence, FORGOTTEN: sentence})


def names_of(version: ModelVersion) -> str:
    """A registered version in words: its number, and whether it is champion or challenger."""
    roles = [alias for alias in version.aliases if alias in (CHAMPION, CHALLENGER)]
    return f"version {version.version}" + (f" ({', '.join(roles)})" if roles else "")
