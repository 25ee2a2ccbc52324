"""provenance.json: the record that makes a stage's directory an artifact, written last."""

import json
from collections.abc import Callable
from typing import Any, ClassVar, Self

from pydantic import Field

from storage.documents.document import Document, Part
from storage.refs import Kind, Ref


class Cost(Part):
    """What a training took; another run of it takes something else.

    Attributes:
        seconds: of its optimiser steps, with their data, without validation and what else stands between them.
        steps: of its loop.
        volumes: seen in them, each as often as it was seen.
        peak_memory_bytes: of the first rank's process, on a GPU of its tensors there; of the last launch, where there were several.
        device: name of the GPU, or `cpu`.
        threads: of the CPU; 0 on a GPU.
        ranks: that trained together.
    """

    seconds: float
    steps: int
    volumes: int
    peak_memory_bytes: int
    device: str
    threads: int
    ranks: int


class Provenance(Document):
    """What an artifact is, what made it, and the hash of every file in it.

    Attributes:
        kind: of the artifact.
        digest: `sha256:<hex>` of kind and files.
        stage: its name, as in the cache key.
        recipe: version of the stage's arithmetic.
        inputs: references the stage read, by role.
        config: resolved configuration of the stage.
        files: SHA-256 by relative POSIX path.
        created: UTC time, ISO 8601.
        code_version: version of prdit; None where it was not recorded.
        mlflow_run_id: MLflow run of the stage; empty or None where there is none.
        seconds: wall time of the stage.
        cost: of a training; None of other stages, and of trainings before it was recorded.
        forgotten: of an artifact made from volumes of a patient who was forgotten since: a sentence that says so; else empty.
        redacted: files that said or showed something of that patient: SHA-256 of what is left of each, empty where nothing is.
    """

    FORMAT: ClassVar[int] = 1
    NAME: ClassVar[str] = "provenance.json"
    WHAT: ClassVar[str] = "provenance record"
    REMEDY: ClassVar[str] = "Run the stage that makes this artifact, or correct the path or reference."

    kind: Kind
    digest: str
    stage: str
    recipe: int
    inputs: dict[str, Ref]
    config: dict[str, Any]
    files: dict[str, str]
    created: str
    code_version: str | None = None
    mlflow_run_id: str | None = None
    seconds: float | None = None
    cost: Cost | None = None
    forgotten: str = ""
    redacted: dict[str, str] = Field(default_factory=dict)

    def without_uris(self) -> dict[str, Any]:
        """What MLflow gets: the content of the file without places of this machine."""
        inputs = {role: {"kind": ref.kind, "digest": ref.digest} for role, ref in self.inputs.items()}
        return self.to_json() | {"inputs": inputs}

    @classmethod
    def parse_without_uris(cls, data: bytes, where: str) -> Self:
        """`parse` of what MLflow has; each input has an empty uri."""
        try:
            values = json.loads(data)
            placed = {role: {**ref, "uri": ""} for role, ref in values["inputs"].items()}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return cls.parse(data, where)  # which says what is wrong
        return cls.from_json(values | {"inputs": placed}, where)

    def to_json(self) -> dict[str, Any]:
        """The content of the file; without the cost of what is no training, and what is said of one of which something was
        forgotten.
        """
        values = super().to_json()
        return {key: value for key, value in values.items() if value or key not in ("cost", "forgotten", "redacted")}

    def with_places(self, place: Callable[[str, Ref], str]) -> Self:
        """The record with another uri for each input, from its role and reference; the artifact's digest does not depend on it."""
        inputs = {role: ref.model_copy(update={"uri": place(role, ref)}) for role, ref in self.inputs.items()}
        return self.model_copy(update={"inputs": inputs})
