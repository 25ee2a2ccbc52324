"""The only module that uses MLflow: puts records of `storage/outbox.py` on a server, each so that a second time changes nothing.

A record may come twice: when an answer was lost, or a process was killed before it noted the answer. MLflow's SQL stores keep one
metric per run, name, time, step and value, so a repeated point is the same point. A run has our own id as a tag, which is searched
for before the run is created.
"""

import json
import logging
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Before mlflow is imported: no telemetry, and one try per request, because the sender repeats them: a second request that MLflow's
# client sends by itself could create a second run.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # its links open the page for GenAI
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

from mlflow.artifacts import download_artifacts
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
    ViewType,
)
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_IMAGES,
    MLFLOW_LOGGED_MODELS,
    MLFLOW_PARENT_RUN_ID,
)
from PIL import Image

from storage.outbox import RefusedError, ServerAwayError, UploadError
from storage.registry import DIGEST

_BATCH = 900  # MLflow accepts 1000 metrics per request
_PARAMS = 100
_MAX_PARAM = 6000
_MAX_DIGEST = 36
_PAGE = 1000  # runs or experiments per request
_MODELS_PAGE = 50  # logged models per request, the most that MLflow allows
_UPLOAD_TIMEOUT_S = 120  # a server answers an upload of weights only after it has stored them as artifacts
_LATER = {401, 403, 408, 429}  # a login that has run out, a busy server: the same request may be accepted later
_MODEL_ID = "prdit.model_id"
_RUN_TAG = "prdit.tracking_id"
Record = Mapping[str, Any]
logger = logging.getLogger("prdit.tracking")


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended.

    Attributes:
        run_id: of it.
        parent: run it is a child of; empty: none.
    """

    run_id: str
    parent: str


@dataclass(frozen=True)
class RecordedModel:
    """A logged model.

    Attributes:
        model_id: of it.
        digest: of the checkpoint; empty for a model that is not ours.
        source_run: run that made it.
    """

    model_id: str
    digest: str
    source_run: str


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model, as MLflow has it.

    Attributes:
        number: of the version.
        run_id: that made it; empty: none is known.
        model_id: of the logged model with its files.
        created_ms: time, in milliseconds.
        aliases, tags: of the version.
    """

    number: int
    run_id: str
    model_id: str
    created_ms: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


class Server:
    """One tracking server, or MLflow in a local file.

    Args:
        uri: its address.

    Raises: RefusedError: MLflow knows no such kind of address.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with _explained():
            self._client = MlflowClient(tracking_uri=uri)
        self._experiments: dict[str, str] = {}
        self._operations: dict[str, Callable[[str, str, Record, list[Path]], None]] = {
            "points": self._points,
            "tags": self._tags,
            "text": self._text,
            "file": self._file,
            "image": self._image,
            "dataset": self._dataset,
            "model": self._model,
            "use_model": self._use_model,
            "end": self._end,
        }

    # ---- experiments and runs -----------------------------------------------------------------------------------------

    def experiment(self, name: str, tags: Mapping[str, str], artifacts: str | None) -> str:
        """The id of an experiment, made when missing; its tags are set.

        Args:
            name: of it.
            tags: of it.
            artifacts: where a new one keeps its artifacts; None: where the server does.
        Raises: ServerAwayError, RefusedError.
        """
        if name in self._experiments:
            return self._experiments[name]
        with _explained():
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    self._client.create_experiment(name, artifact_location=artifacts, tags=dict(tags))
                except MlflowException:  # another run made it between the two calls
                    logger.debug("experiment %s exists by now", name)
                found = self._client.get_experiment_by_name(name)
            if found is None:
                raise ServerAwayError(f"experiment {name} cannot be made")
            for key, value in tags.items():
                if found.tags.get(key) != value:
                    self._client.set_experiment_tag(found.experiment_id, key, value)
        self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]

    def experiment_id(self, name: str) -> str:
        """The id of an experiment that this process has asked for before; else empty."""
        return self._experiments.get(name, "")

    def find_runs(self, experiment_id: str, tracking_id: str) -> list[str]:
        """The runs with our id, the first one created first. Raises: ServerAwayError, RefusedError."""
        with _explained():
            wanted = f"tags.`{_RUN_TAG}` = '{tracking_id}'"
            return [
                run.info.run_id for run in self._client.search_runs([experiment_id], wanted, order_by=["start_time"])
            ]

    def ping(self) -> bool:
        """True. Raises: ServerAwayError, RefusedError."""
        with _explained():
            self._client.search_experiments(max_results=1)
        return True

    def has_run(self, run_id: str) -> bool:
        """Whether the server knows a run. Raises: ServerAwayError."""
        try:
            with _explained():
                self._client.get_run(run_id)
        except RefusedError:
            return False
        return True

    def create_run(self, experiment_id: str, tracking_id: str, parent: str, record: Record) -> str:
        """Create a run, and return its id.

        Args:
            experiment_id: of its experiment.
            tracking_id: our id, set as a tag.
            parent: run it is a child of; empty: none.
            record: `name`, `tags`, `time_ms`.
        Raises: ServerAwayError, RefusedError.
        """
        tags = dict(record["tags"]) | {_RUN_TAG: tracking_id} | ({MLFLOW_PARENT_RUN_ID: parent} if parent else {})
        with _explained():
            run = self._client.create_run(experiment_id, record["time_ms"], run_name=record["name"], tags=tags)
            return str(run.info.run_id)

    def set_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Set the parameters of a run. Raises: ServerAwayError, RefusedError."""
        values = [Param(key, value[:_MAX_PARAM]) for key, value in params.items()]
        with _explained():
            for start in range(0, len(values), _PARAMS):
                self._client.log_batch(run_id, params=values[start : start + _PARAMS])

    def delete_run(self, run_id: str) -> None:
        """Delete a run that was created twice. Raises: ServerAwayError, RefusedError."""
        with _explained():
            self._client.delete_run(run_id)

    # ---- records ------------------------------------------------------------------------------------------------------

    def deliver(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        """Put one record of a run on the server.

        Args:
            experiment_id, run_id: the run.
            record: of `storage/outbox.py`, any but the first.
            files: the files that the record names.
        Raises: ServerAwayError, RefusedError, UploadError.
        """
        with _explained(upload=bool(files) or record["op"] == "text"):
            self._operations[record["op"]](experiment_id, run_id, record, files)

    def attach(self, run_id: str, files: Sequence[Path], folder: str, tags: Mapping[str, str]) -> None:
        """Put files into a folder of a run's artifacts, in place of those of the same name, and set tags; it may have ended.

        Raises: ServerAwayError, RefusedError, UploadError.
        """
        with _explained(upload=True), _upload_timeout():
            for path in files:
                self._client.log_artifact(run_id, str(path), folder)
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _points(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        model_id = self._model_id(experiment_id, record.get("model"))
        metrics = [
            Metric(record["prefix"] + name, float(value), int(point["time_ms"]), int(point["step"]), model_id=model_id)
            for point in record["points"]
            for name, value in point.items()
            if name not in ("step", "time_ms")
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _BATCH])

    def _tags(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record["tags"].items()])

    def _text(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        self._client.log_text(run_id, record["text"], record["name"])

    def _file(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        with _upload_timeout():
            for path in files:
                self._client.log_artifact(run_id, str(path))

    def _image(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        """As `MlflowClient.log_image`, which would draw other file names each time, so that a repeated image were two."""
        key = record["key"].replace("/", "~")  # as MLflow names it: an artifact's folders are not part of a key
        name = f"{key}+step+{record['step']}+timestamp+{record['time_ms']}"
        name += f"+{uuid.uuid5(uuid.NAMESPACE_OID, run_id + name)}"
        with TemporaryDirectory() as folder, Image.open(files[0]) as image:
            image.save(Path(folder) / f"{name}.png")
            compress_image_size(image).save(Path(folder) / f"{name}+compressed.webp")
            for path in sorted(Path(folder).iterdir()):
                self._client.log_artifact(run_id, str(path), "images")
        self._client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")

    def _dataset(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        digest = record["digest"]
        short, source = digest.removeprefix("sha256:")[:_MAX_DIGEST], json.dumps({"digest": digest})
        profile = json.dumps({"digest": digest, **record["facts"]})
        entry = DatasetInput(
            Dataset(record["name"], short, "prdit", source, profile=profile),
            [InputTag(MLFLOW_DATASET_CONTEXT, record["context"])],
        )
        self._client.log_inputs(run_id, datasets=[entry])

    def _use_model(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        model_id = self._model_id(experiment_id, record["digest"])
        inputs = self._client.get_run(run_id).inputs.model_inputs
        if model_id and model_id not in [entry.model_id for entry in inputs]:
            self._client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

    def _end(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        self._client.set_terminated(run_id, record["status"], record["time_ms"])

    # ---- models -------------------------------------------------------------------------------------------------------

    def _model_id(self, experiment_id: str, digest: str | None) -> str | None:
        found = self._models(experiment_id, digest, LoggedModelStatus.READY) if digest else []
        return str(found[0].model_id) if found else None

    def _models(self, experiment_id: str, digest: str, status: LoggedModelStatus) -> list[LoggedModel]:
        found = self._client.search_logged_models([experiment_id], filter_string=f"tags.`{DIGEST}` = '{digest}'")
        return [model for model in found if model.status == status]

    def _model(self, experiment_id: str, run_id: str, record: Record, files: list[Path]) -> None:
        ready = self._models(experiment_id, record["digest"], LoggedModelStatus.READY)
        model = ready[0] if ready else self._upload_model(experiment_id, run_id, record, files)
        outputs = self._client.get_run(run_id).outputs.model_outputs
        if model.model_id not in [entry.model_id for entry in outputs]:
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, record["step"])])
        if model.source_run_id != run_id:  # the page's column Models reads this tag for every run but the model's own
            made = datetime.fromtimestamp(model.creation_timestamp / 1000, UTC).replace(tzinfo=None)
            entry = {
                "run_id": run_id,
                "artifact_path": files[-1].name,
                "flavors": {record["name"]: {}},
                "utc_time_created": str(made),
            }
            self._client.set_tag(run_id, MLFLOW_LOGGED_MODELS, json.dumps([entry]))

    def _upload_model(self, experiment_id: str, run_id: str, record: Record, files: Sequence[Path]) -> LoggedModel:
        begun = self._models(experiment_id, record["digest"], LoggedModelStatus.PENDING)
        ours = [model for model in begun if model.source_run_id == run_id]  # an upload that was cut off goes on
        model = ours[0] if ours else None
        if model is None:
            model = self._create_model(experiment_id, run_id, record)
        with _upload_timeout():
            for path in files:
                self._client.log_model_artifact(model.model_id, str(path))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return model

    # ---- what is not kept any more ------------------------------------------------------------------------------------

    def ended_before(self, time_ms: int, *, experiment: str, beside: Collection[str] = ()) -> list[EndedRun]:
        """The runs of prdit that ended before a time, in some experiments; a run without our tag is another's.

        Args:
            time_ms: the time.
            experiment: name of one of them.
            beside: ids of runs whose experiments are searched, too; those that the server does not know count for nothing.
        Raises: ServerAwayError, RefusedError.
        """
        experiments = {self._experiment_of_run(run_id) for run_id in beside} - {""}
        with _explained():
            if experiment and (known := self._client.get_experiment_by_name(experiment)):
                experiments.add(str(known.experiment_id))
            search = partial(
                self._client.search_runs, sorted(experiments), f"attributes.end_time < {time_ms}", max_results=_PAGE
            )
            return [
                EndedRun(run.info.run_id, run.data.tags.get(MLFLOW_PARENT_RUN_ID, ""))
                for run in (_all_pages(search) if experiments else ())
                if _RUN_TAG in run.data.tags
            ]

    def _experiment_of_run(self, run_id: str) -> str:
        """The id of a run's experiment; empty where the server has no such run."""
        try:
            with _explained():
                return str(self._client.get_run(run_id).info.experiment_id)
        except RefusedError:
            return ""

    def models(self) -> list[RecordedModel]:
        """The logged models of all experiments. Raises: ServerAwayError, RefusedError."""
        with _explained():
            experiments = [each.experiment_id for each in _all_pages(self._client.search_experiments)]
            search = partial(self._client.search_logged_models, experiments, max_results=_MODELS_PAGE)
            return [
                RecordedModel(model.model_id, model.tags.get(DIGEST, ""), model.source_run_id or "")
                for model in (_all_pages(search) if experiments else ())
            ]

    def delete_model(self, model_id: str) -> None:
        """Mark a logged model as deleted; `mlflow gc` removes it. Raises: ServerAwayError, RefusedError."""
        with _explained():
            self._client.delete_logged_model(model_id)

    def give_up(self, experiment_id: str, run_id: str, record: Record) -> None:
        """Mark a model whose files could not be stored as failed. Raises: ServerAwayError, RefusedError."""
        if record["op"] == "model":
            with _explained():
                for model in self._models(experiment_id, record["digest"], LoggedModelStatus.PENDING):
                    if model.source_run_id == run_id:
                        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)

    # ---- forgetting a patient -----------------------------------------------------------------------------------------

    def all_runs(self) -> dict[str, dict[str, str]]:
        """Tags by run id of the runs of all experiments, deleted ones among them. Raises: ServerAwayError, RefusedError."""
        with _explained():
            ids = self._all_experiments()
            search = partial(self._client.search_runs, ids, run_view_type=ViewType.ALL, max_results=_PAGE)
            return {str(run.info.run_id): dict(run.data.tags) for run in (_all_pages(search) if ids else ())}

    def _all_experiments(self) -> list[str]:
        search = partial(self._client.search_experiments, ViewType.ALL, max_results=_PAGE)
        return [str(one.experiment_id) for one in _all_pages(search)]

    def artifact_names(self, run_id: str, folder: str | None = None) -> list[str]:
        """Paths of the files in a folder of a run's artifacts; none where there is no such folder."""
        with _explained():
            return [one.path for one in self._artifacts(run_id).list_artifacts(folder) if not one.is_dir]

    def read_artifact(self, run_id: str, path: str) -> bytes:
        """Content of a file of a run. Raises: ServerAwayError, RefusedError."""
        with _explained(), TemporaryDirectory() as folder:
            return Path(self._artifacts(run_id).download_artifacts(path, folder)).read_bytes()

    def replace_artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Put other content in place of a file of a run, which may have ended or be deleted. Raises: as `attach`."""
        with _explained(upload=True), _upload_timeout(), TemporaryDirectory() as folder:
            local = Path(folder) / Path(path).name
            local.write_bytes(data)
            self._artifacts(run_id).log_artifact(str(local), str(Path(path).parent) if "/" in path else None)

    def _artifacts(self, run_id: str) -> ArtifactRepository:
        return get_artifact_repository(self._client.get_run(run_id).info.artifact_uri, tracking_uri=self.uri)

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run; nothing where it is deleted. Raises: ServerAwayError, RefusedError."""
        with _explained():
            if self._client.get_run(run_id).info.lifecycle_stage == "active":
                self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def tag_models(self, digests: Collection[str], tags: Mapping[str, str]) -> None:
        """Set tags of the models that are checkpoints of some digests. Raises: ServerAwayError, RefusedError."""
        with _explained():
            ids = self._all_experiments()
            for digest in digests if ids else ():
                for model in self._client.search_logged_models(ids, filter_string=f"tags.`{DIGEST}` = '{digest}'"):
                    self._client.set_logged_model_tags(model.model_id, dict(tags))

    # ---- registered model ---------------------------------------------------------------------------------------------

    def versions(self, name: str) -> list[RegisteredVersion]:
        """Versions of a registered model, oldest first; none where there is none. Raises: ServerAwayError, RefusedError."""
        with _explained():
            models = self._client.search_registered_models(f"name = '{name}'")
            if not models:
                return []
            aliases: dict[int, list[str]] = {}
            for alias, version in self._client.get_registered_model(name).aliases.items():
                aliases.setdefault(int(version), []).append(alias)
            found = list(_all_pages(partial(self._client.search_model_versions, f"name = '{name}'")))
        return [
            RegisteredVersion(
                number=int(one.version),
                run_id=one.run_id or "",
                model_id=one.tags.get(_MODEL_ID, ""),
                created_ms=int(one.creation_timestamp),
                aliases=tuple(sorted(aliases.get(int(one.version), []))),
                tags=dict(one.tags),
            )
            for one in sorted(found, key=lambda one: int(one.version))
        ]

    def upload_checkpoint(self, run_id: str, experiment_id: str, record: Record, files: Mapping[str, Path]) -> str:
        """Put all files of a checkpoint into the experiment's model with its digest, made where there is none; the model's id.

        Files that the model has with their size are not sent again.

        Args:
            run_id: that made it; empty: none is known.
            experiment_id: of the model where no run is known.
            record: `name`, `digest`, `facts`, as a record of `storage.outbox` has them.
            files: by name below the model's folder; the last one is complete only when all others are.
        Raises: ServerAwayError, RefusedError, UploadError.
        """
        with _explained(upload=True), _upload_timeout():
            if run_id:
                experiment_id = str(self._client.get_run(run_id).info.experiment_id)
            ready = self._models(experiment_id, record["digest"], LoggedModelStatus.READY)
            begun = self._models(experiment_id, record["digest"], LoggedModelStatus.PENDING)
            found = [*ready, *(model for model in begun if not run_id or model.source_run_id == run_id)]
            model = found[0] if found else self._create_model(experiment_id, run_id or None, record)
            stored = self._model_files(model.model_id, sorted({str(Path(name).parent) for name in files}))
            for name, path in files.items():
                if stored.get(name) != path.stat().st_size:
                    folder = str(Path(name).parent)
                    self._client.log_model_artifact(model.model_id, str(path), None if folder == "." else folder)
            if model.status != LoggedModelStatus.READY:
                self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def model_files(self, model_id: str) -> set[str]:
        """Names of the files at the top of a model's folder. Raises: ServerAwayError, RefusedError: there is no such model."""
        with _explained():
            self._client.get_logged_model(model_id)  # the files of one in the trash would still be listed
            return set(self._model_files(model_id, ["."]))

    def has_model_file(self, model_id: str, name: str) -> bool:
        """Whether a model's folder has a file; false where there is no such model. Raises: ServerAwayError, RefusedError."""
        with _explained():
            try:
                self._client.get_logged_model(model_id)
            except MlflowException as error:
                if _status(error) == HTTPStatus.NOT_FOUND:
                    return False
                raise
            return name in self._model_files(model_id, [str(Path(name).parent)])

    def _model_files(self, model_id: str, folders: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder in folders:
            listed = self._client.list_logged_model_artifacts(model_id, None if folder == "." else folder)
            found |= {one.path: int(one.file_size or 0) for one in listed if not one.is_dir}
        return found

    def create_version(self, name: str, model_id: str, run_id: str, tags: Mapping[str, str], about: str) -> int:
        """Make a version of a registered model, which is made when missing, of a model's files; the version's number.

        Args:
            name: of the registered model.
            model_id: of the model.
            run_id: that made it; empty: none is known.
            tags: of the version.
            about: description of a new registered model.
        Raises: ServerAwayError, RefusedError.
        """
        with _explained():
            if not self._client.search_registered_models(f"name = '{name}'"):
                try:
                    self._client.create_registered_model(name, description=about)
                except MlflowException:  # another process made it between the two calls
                    logger.debug("registered model %s exists by now", name)
            source = str(self._client.get_logged_model(model_id).artifact_location)
            # A server needs the id to allow the source; with a file MLflow would look for it at its default address.
            linked = None if self.uri.startswith("sqlite:") else model_id
            all_tags = dict(tags) | {_MODEL_ID: model_id}
            made = self._client.create_model_version(
                name, source, run_id=run_id or None, tags=all_tags, await_creation_for=0, model_id=linked
            )
            return int(made.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Let an alias name a version. Raises: ServerAwayError, RefusedError."""
        with _explained():
            self._client.set_registered_model_alias(name, alias, str(version))

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias, where there is one. Raises: ServerAwayError, RefusedError."""
        with _explained():
            if alias in self._client.get_registered_model(name).aliases:
                self._client.delete_registered_model_alias(name, alias)

    def tag_version(self, name: str, version: int, tags: Mapping[str, str], description: str | None = None) -> None:
        """Set tags of a version, and its description where one is given. Raises: ServerAwayError, RefusedError."""
        with _explained():
            if description is not None:
                self._client.update_model_version(name, str(version), description)
            for key, value in tags.items():
                self._client.set_model_version_tag(name, str(version), key, value)

    def download_model_file(self, model_id: str, name: str, folder: Path) -> Path:
        """Fetch one file of a model's folder into a local one. Raises: ServerAwayError, RefusedError, UploadError: no such file."""
        with _explained(upload=True), _upload_timeout():
            location = str(self._client.get_logged_model(model_id).artifact_location)
            path = download_artifacts(f"{location}/{name}", dst_path=str(folder), tracking_uri=self.uri)
        return Path(path)

    def _create_model(self, experiment_id: str, run_id: str | None, record: Record) -> LoggedModel:
        return self._client.create_logged_model(
            experiment_id,
            name=record["name"],
            source_run_id=run_id,
            tags={DIGEST: record["digest"]},
            params=dict(record["facts"]),
            model_type="prdit",
        )


def _all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Everything that a search finds, page by page."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


# ---- errors -----------------------------------------------------------------------------------------------------------


@contextmanager
def _explained(*, upload: bool = False) -> Iterator[None]:
    """Turn whatever MLflow and its clients raise into one of the three answers that a sender acts on."""
    try:
        yield
    except (ServerAwayError, RefusedError):
        raise
    except Exception as error:
        message, status = first_line(error), _status(error)
        if status is not None and 400 <= status < 500 and status not in _LATER:
            raise RefusedError(message) from error
        if upload and not _is_away(error):
            raise UploadError(message) from error
        if isinstance(error, MlflowException | OSError):
            raise ServerAwayError(message) from error
        raise RefusedError(f"{type(error).__name__}: {message}") from error


def _status(error: Exception) -> int | None:
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_away(error: Exception) -> bool:
    """Whether an error means that no answer came, of a request or of an upload."""
    causes: list[BaseException | None] = [error]
    while causes[-1] is not None and len(causes) < 8:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    names = {type(cause).__name__ for cause in causes}
    return bool(names & {"ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "ConnectionRefusedError"})


@contextmanager
def _upload_timeout() -> Iterator[None]:
    """More time for the requests inside: weights are large, and a server may pass them on before it answers."""
    before = MLFLOW_HTTP_REQUEST_TIMEOUT.get_raw()
    MLFLOW_HTTP_REQUEST_TIMEOUT.set(_UPLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        MLFLOW_HTTP_REQUEST_TIMEOUT.set(before)


def first_line(error: BaseException) -> str:
    """The beginning of an error's message; of a refused connection just that."""
    text = (str(error).strip().splitlines() or [""])[0]
    if "Max retries exceeded" in text:
        text = "connection refused" if "refused" in text.lower() else "no connection"
    return text[:200] or type(error).__name__
