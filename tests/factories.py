"""Small real artifacts for tests: a store of a few blobs, a split of it, a training specification."""

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.artifacts import Ref, commit_artifact
from storage.documents.run_record import RunDocument
from storage.documents.snapshot import SnapshotVolume
from storage.documents.split import Split
from storage.geometry import Volume
from storage.snapshots import list_all
from storage.volume_store import VolumeStore
from tasks.ingest.config import IngestConfig
from tasks.train.__main__ import _commit
from tasks.train.config import TrainingConfig
from tasks.train.loop import Training
from tasks.train.setup import assemble
from tasks.train.spec import TrainSpec, training_stage


def make_store(path: Path, num_volumes: int = 3, edge: int = 16, spacing_mm: float = 8.0) -> Ref:
    """A snapshot of a store (one level) of smooth, different blobs with HU of a thorax."""
    store = VolumeStore.create(path, spacing_mm=spacing_mm, num_levels=1, interpolation="linear")
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij")
    for index in range(num_volumes):
        body = (x**2 + y**2 < 0.7 + 0.05 * index) * 1040.0 - 1000.0
        lungs = ((np.abs(x) - 0.4) ** 2 + y**2 + 0.3 * z**2 < 0.08 + 0.01 * index) * -850.0
        hu = np.clip(body + lungs, -1024, 3000).astype(np.int16)
        store.write(Volume(hu, (spacing_mm,) * 3, (0.0,) * 3), volume_id=f"v{index}", attributes={})
    return list_volumes(store, {f"v{index}": f"p{index}" for index in range(num_volumes)})


def list_volumes(store: VolumeStore, patients: dict[str, str], labels: dict[str, dict[str, str]] | None = None) -> Ref:
    """A snapshot with volumes of known patients, and their labels."""
    entries = {}
    for name, patient in patients.items():
        record = store.commit_record(name)
        entries[name] = SnapshotVolume(
            patient_key=patient,
            patient_known=True,
            shape=record.shape,
            attributes=record.attributes,
            labels=(labels or {}).get(name, {}),
        )
    return list_all(store, entries, "test")


def make_split(directory: Path, snapshot: Ref, train: list[str], val: list[str]) -> Ref:
    """A committed split with the given roles."""
    Split(roles={"train": train, "val": val}, patients={}, notes=[]).save(directory)
    return commit_artifact(directory, "split", stage="split", recipe=1, inputs={"snapshot": snapshot}, config={})


def run_document(**changes: Any) -> RunDocument:
    """The record of a run that completed without stages; fields may be named."""
    values: dict[str, Any] = {
        "config_digest": "sha256:1",
        "prefect_flow_run_id": None,
        "mlflow_uri": "",
        "mlflow_run_id": "",
        "mlflow_experiment_id": "",
        "stages": {},
        "seconds": 1.0,
        "gates": {},
        "report": None,
        "metrics": None,
        "error": None,
    }
    return RunDocument(**values | changes)


def make_data(root: Path, num_volumes: int = 3) -> tuple[Ref, Ref]:
    """A snapshot of a store and a split of it, the last volume held out."""
    snapshot = make_store(root / "store", num_volumes)
    *train, held_out = [f"v{index}" for index in range(num_volumes)]
    return snapshot, make_split(root / "split", snapshot, train, [held_out])


_SETTINGS = {
    "local": ("preset", "arithmetic", "norm"),
    "global": ("preset", "joint_local", "qk_norm", "position"),
    "refiner": ("preset", "low_frequency_weight", "fine_tune_lr"),
}
_OF_ALL = ("time_distribution", "logit_mean", "logit_std")
_SHORT: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "lr": 1e-3,
    "val_every": 3,
    "checkpoint_every": 2,
    "log_every": 1,
    "num_threads": 1,
    "device": "cpu",
}


def local_config(**changes: Any) -> TrainingConfig:
    """A training of a local denoiser that takes seconds: 16³, 10-voxel patches. Settings of the family may be named directly."""
    return _config("local", {"view": {"size": 16, "edge": 16}, "settings": {"preset": "XS/10/0"}}, changes)


def small_config(**changes: Any) -> TrainingConfig:
    """A training of a hundredth of the weights of `local_config`: 4-voxel patches, which no transformer continues."""
    return local_config(**{"preset": "XS/4/0"} | changes)


def global_config(**changes: Any) -> TrainingConfig:
    """A training of a global transformer on top of `local_config`."""
    return _config("global", {"start": "local", "settings": {"preset": "XS/10/1"}}, changes)


def refiner_config(**changes: Any) -> TrainingConfig:
    """A training of a refiner, one level above `global_config`."""
    return _config("refiner", {"start": "global", "settings": {"preset": "XS/10/0"}}, changes)


def _config(family: str, values: dict[str, Any], changes: dict[str, Any]) -> TrainingConfig:
    of_family = {*_SETTINGS[family], *_OF_ALL}
    settings = values["settings"] | {key: value for key, value in changes.items() if key in of_family}
    rest = {key: value for key, value in changes.items() if key not in of_family}
    return TrainingConfig.model_validate({"family": family, **_SHORT, **values, **rest, "settings": settings})


def train_spec(
    config: TrainingConfig, snapshot: Ref, split: Ref, directory: Path, start: Ref | None = None
) -> TrainSpec:
    """A complete job in a fresh directory; the training is named like its family."""
    directory.mkdir(parents=True, exist_ok=True)
    stage = training_stage(config.family)
    inputs = {"snapshot": snapshot, "split": split} | ({"start": start} if start else {})
    provenance = {
        "stage": stage.name,
        "recipe": stage.recipe,
        "inputs": {role: ref.model_dump() for role, ref in inputs.items()},
        "config": config.key_fields(),
        "extra": {},
    }
    return TrainSpec(
        stage=stage.name,
        config=config,
        snapshot=snapshot,
        split=split,
        start=start,
        directory=directory,
        provenance=provenance,
    )


def trained(spec: TrainSpec) -> Ref:
    """The checkpoint of a training, run to its end in this process."""
    Training(assemble(spec), spec).run(lambda: False)
    return _commit(spec)


def in_the_ranks(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every rank run some code before anything else; the node process, which has no RANK, does not."""
    indented = textwrap.indent(textwrap.dedent(code), "    ")
    (folder / "sitecustomize.py").write_text(f"import os\nif 'RANK' in os.environ:\n{indented}")
    monkeypatch.syspath_prepend(folder)  # which a launcher passes on


def page_submits(schema: dict[str, Any]) -> dict[str, Any]:
    """What Prefect's page (3.8) submits for an untouched form: every field's default, a mapping as its editor's text."""
    return {
        name: {"__prefect_kind": "json", "value": json.dumps(field["default"])}
        if field["type"] == "object"
        else field["default"]
        for name, field in schema["properties"].items()
    }


def small_ingest(**changes: Any) -> IngestConfig:
    """Ingest configuration for scans of a few small slices, which are no whole chest."""
    return IngestConfig(**{"min_slices": 8, "min_length_mm": 0.0, "min_width_mm": 0.0} | changes)
