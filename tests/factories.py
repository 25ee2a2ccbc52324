"""Small real artifacts for tests: a store of a few blobs, a split of it, a training specification."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from storage.artifacts import Ref, commit_artifact
from storage.files import write_json_atomic
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainLocalConfig, TrainRefinerConfig
from tasks.train.spec import TrainSpec, training_of


def make_store(path: Path, num_volumes: int = 3, edge: int = 16, spacing_mm: float = 8.0) -> Ref:
    """A store (one level) of smooth, different, thorax-coloured blobs."""
    store = VolumeStore.create(path, spacing_mm=spacing_mm, num_levels=1, interpolation="linear")
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, edge)] * 3, indexing="ij")
    for index in range(num_volumes):
        body = (x**2 + y**2 < 0.7 + 0.05 * index) * 1040.0 - 1000.0
        lungs = ((np.abs(x) - 0.4) ** 2 + y**2 + 0.3 * z**2 < 0.08 + 0.01 * index) * -850.0
        hu = np.clip(body + lungs, -1024, 3000).astype(np.int16)
        store.write(
            Volume(hu, (spacing_mm,) * 3, (0.0,) * 3), volume_id=f"v{index}", attributes={"patient_key": f"p{index}"}
        )
    return Ref(kind="store", uri=str(path), digest=store.fingerprint())


def make_split(directory: Path, store: Ref, train: list[str], val: list[str]) -> Ref:
    """A committed split with the given roles."""
    write_json_atomic(directory / "split.json", {"roles": {"train": train, "val": val}, "patients": {}, "notes": []})
    return commit_artifact(directory, "split", stage="split", recipe=1, inputs={"store": store}, config={})


def make_data(root: Path, num_volumes: int = 3) -> tuple[Ref, Ref]:
    """A store and a split of it, the last volume held out."""
    store = make_store(root / "store", num_volumes)
    *train, held_out = [f"v{index}" for index in range(num_volumes)]
    return store, make_split(root / "split", store, train, [held_out])


def local_config(**changes: Any) -> TrainLocalConfig:
    """A stage-1 configuration that takes seconds: 16³, 10-voxel patches."""
    values: dict[str, Any] = {
        "preset": "XS/10/0",
        "view": {"size": 16, "edge": 16},
        "steps": 6,
        "batch_size": 2,
        "lr": 1e-3,
        "val_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "num_threads": 1,
        "device": "cpu",
    }
    return TrainLocalConfig.model_validate(values | changes)


def global_config(**changes: Any) -> TrainGlobalConfig:
    """A stage-2 configuration on top of `local_config`."""
    values = local_config().model_dump(include=set(TrainGlobalConfig.model_fields) - {"preset"})
    return TrainGlobalConfig.model_validate(values | {"preset": "XS/10/1"} | changes)


def refiner_config(**changes: Any) -> TrainRefinerConfig:
    """A stage-3 configuration, one level above `global_config`."""
    values = local_config().model_dump(
        include=set(TrainRefinerConfig.model_fields) - {"preset", "low_frequency_weight"}
    )
    return TrainRefinerConfig.model_validate(values | {"preset": "XS/10/0"} | changes)


def train_spec(config: TrainConfig, store: Ref, split: Ref, directory: Path, below: Ref | None = None) -> TrainSpec:
    """A complete job in a fresh directory."""
    directory.mkdir(parents=True, exist_ok=True)
    training = training_of(config)
    inputs = {"store": store, "split": split} | ({training.below: below} if below else {})
    provenance = {
        "stage": training.stage.name,
        "recipe": training.stage.recipe,
        "inputs": {role: ref.model_dump() for role, ref in inputs.items()},
        "config": config.key_fields(),
        "extra": {},
    }
    return TrainSpec(
        stage=training.stage.name,
        config=config.model_dump(mode="json"),
        store=store,
        split=split,
        below=below,
        directory=directory,
        provenance=provenance,
    )


def page_submits(schema: dict[str, Any]) -> dict[str, Any]:
    """What Prefect's page (3.8) submits for an untouched form: every field's default, a mapping as its editor's text."""
    return {
        name: {"__prefect_kind": "json", "value": json.dumps(field["default"])}
        if field["type"] == "object"
        else field["default"]
        for name, field in schema["properties"].items()
    }
