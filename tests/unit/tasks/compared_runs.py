"""Runs whose samples are real and whose figures are given, in a working folder as the pipeline leaves it."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from storage.artifacts import Ref, commit_artifact
from storage.documents.report import FigureRecord
from storage.documents.run_record import StageRecord
from storage.documents.samples import Samples
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tests.factories import make_split, make_store, run_document
from tests.unit.tasks.checkpoints import commit_pair
from tests.unit.tasks.test_comparability import report

DIGEST = "sha256:" + "1" * 64  # of the feature network


def figure(value: float | None, **changes: Any) -> FigureRecord:
    values = {"n_real": 5, "n_generated": 4, "unit": "", "features": None, "interval": None, "note": ""}
    return FigureRecord(value=value, **values | changes)


@dataclass
class World:
    """A store, a split of it, a checkpoint; runs are added.

    Attributes:
        root: an empty folder.
        features: of volumes, by (samples or snapshot digest, volume id); made up, the same for the same key.
    """

    root: Path
    made: dict[str, Ref] = field(default_factory=dict)

    def __post_init__(self) -> None:
        snapshot = make_store(self.root / "store", num_volumes=5)
        split = make_split(self.root / "split", snapshot, ["v0", "v1", "v2"], ["v3", "v4"])
        _, checkpoint = commit_pair(self.root, snapshot, split)
        self.made = {"snapshot": snapshot, "split": split, "checkpoint": checkpoint}

    @property
    def work(self) -> Path:
        return self.root / "work"

    def samples(self, num_volumes: int = 4, seed: int = 1, checkpoint: Ref | None = None) -> Ref:
        """Volumes of 8³ voxels."""
        checkpoint = checkpoint or self.made["checkpoint"]
        config = SampleConfig(num_volumes=num_volumes, num_steps=2, num_threads=1, device="cpu", nifti=False, seed=seed)
        folder = self.root / f"samples-{num_volumes}-{seed}-{checkpoint.digest[-6:]}"
        if not folder.exists():
            sample(checkpoint, config, folder, lambda *_: None)
        inputs = {"checkpoint": checkpoint}
        return commit_artifact(folder, "samples", stage="sample", recipe=1, inputs=inputs, config=config.key_fields())

    def report(
        self, samples: Ref, figures: dict[str, FigureRecord], *, split: Ref | None = None, **changes: Any
    ) -> Ref:
        """A report in `<work>/evaluate/<key>`; `changes` are its fields, `config` that of the stage."""
        config = changes.pop("config", {"seed": 0})
        mlflow_run_id = changes.pop("mlflow_run_id", "")
        kind = {name: changes.pop(name) for name in ("features", "volume_size", "voxel_mm") if name in changes}
        document = report(**{"volume_size": 8, "voxel_mm": 16.0} | kind)
        count = len(Samples.load(samples.path).volume_ids)
        document = document.model_copy(update={"figures": figures, "n_generated": count, "n_real": 5} | changes)
        name = sha256(document.to_bytes() + samples.digest.encode()).hexdigest()[:32]
        folder = self.work / "evaluate" / name
        document.save(folder)
        inputs = {"samples": samples, "snapshot": self.made["snapshot"], "split": split or self.made["split"]}
        extra = {"mlflow_run_id": mlflow_run_id, "code_version": "0.1+abc"}
        return commit_artifact(folder, "report", stage="evaluate", recipe=4, inputs=inputs, config=config, extra=extra)

    def run(self, name: str, ref: Ref | None, mlflow_run_id: str = "", stage_run_id: str = "") -> Path:
        """Record a run that made a report, or ended without one."""
        stages = {}
        if ref:
            stages["evaluate"] = StageRecord(
                ref=ref, cached=False, seconds=1.0, mlflow_run_id=stage_run_id, figures={}, directory=ref.uri
            )
        folder = self.work / "runs" / name
        run_document(
            config_digest="sha256:9",
            mlflow_uri=f"sqlite:///{self.work}/mlflow.db",
            mlflow_run_id=mlflow_run_id,
            mlflow_experiment_id="1",
            stages=stages,
            error=None if ref else "InputError: no scans",
        ).save_run(folder)
        return folder


def made_up_features(digest: str, names: list[str], width: int = 3, shift: float = 0.0) -> np.ndarray:
    """Features of volumes that depend on nothing but their names."""
    rows = [np.random.default_rng(list(f"{digest}{name}".encode())).normal(size=width) for name in names]
    return (np.stack(rows) + shift).astype(np.float32)
