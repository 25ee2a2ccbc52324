"""A model made to memorise two patients, and one that was not: the report says of the first alone that it copies.

Both are trained alike, on phantoms of 16³ voxels of 16 mm: one on two patients, the other on many. Both are sampled and evaluated
as by the pipeline. Minutes of a processor.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from prdit_models.metrics.metric import METRICS
from storage.artifacts import Ref, commit_artifact
from storage.files import read_json
from storage.geometry import Volume
from storage.phantom.anatomy import Anatomy
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.run import evaluate
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tests.factories import global_config, list_volumes, local_config, make_split, train_spec, trained

SIZE, SPACING_MM = 16, 16.0
HELD_OUT = 12
ENOUGH_STEPS = 1600


def phantoms(folder: Path, count: int) -> Ref:
    """A snapshot of a store of phantom patients."""
    store = VolumeStore.create(folder, spacing_mm=SPACING_MM, num_levels=1)
    place = ((np.arange(2 * SIZE) - SIZE + 0.5) * SPACING_MM / 2).astype(np.float32)
    z, y, x = np.meshgrid(place, place, place, indexing="ij")
    for patient in range(count):
        fine = Anatomy.draw(3, patient).hu(x, y, z)
        hu = np.rint(fine.reshape(SIZE, 2, SIZE, 2, SIZE, 2).mean(axis=(1, 3, 5))).astype(np.int16)
        store.write(Volume(hu, (SPACING_MM,) * 3, (0.0,) * 3), volume_id=f"v{patient}", attributes={})
    return list_volumes(store, {f"v{patient}": f"p{patient}" for patient in range(count)})


def measured(root: Path, num_training: int, steps: int, num_samples: int) -> dict[str, Any]:
    """Train, sample and evaluate; what the report says."""
    began = time.perf_counter()
    snapshot = phantoms(root / "store", num_training + HELD_OUT)
    names = [f"v{k}" for k in range(num_training + HELD_OUT)]
    split = make_split(root / "split", snapshot, names[:num_training], names[num_training:])
    often: dict[str, Any] = {
        "val_every": steps,
        "checkpoint_every": steps,
        "val_volumes": 2,
        "log_every": 50,
        "batch_size": 4,
    }
    local = local_config(steps=max(steps // 4, 1), lr=2e-3, lr_decay=0.6, **often)
    start = trained(train_spec(local, snapshot, split, root / "local"))
    whole = global_config(preset="XS/10/4", steps=steps, lr=6e-4, lr_decay=0.6, **often)
    second = train_spec(whole, snapshot, split, root / "global", start)
    checkpoint = trained(second)
    config = SampleConfig(num_volumes=num_samples, num_steps=50, num_threads=1, device="cpu", nifti=False)
    sample(checkpoint, config, root / "samples", lambda *_: None)
    samples = commit_artifact(
        root / "samples",
        "samples",
        stage="sample",
        recipe=1,
        inputs={"checkpoint": checkpoint},
        config=config.key_fields(),
    )
    report = EvaluateConfig.model_validate({"num_threads": 1, "device": "cpu", "num_shown": 1, "num_references": 0})
    evaluate(samples, snapshot, split, report, root / "report", lambda *_: None)
    document = read_json(root / "report" / "metrics.json")
    details = document["details"]["memorisation"]
    return {
        "training_patients": num_training,
        "steps": steps,
        "samples": num_samples,
        "figures": {
            name: round(figure["value"], 3)
            for name, figure in document["figures"].items()
            if name in METRICS["memorisation"].figures
        },
        "threshold_hu": round(details["threshold_hu"], 1),
        "repeated": len(details["repeated"]),
        "warnings": [sentence for sentence in document["warnings"] if "copies" in sentence],
        "seconds": round(time.perf_counter() - began),
    }


def run(folder: Path, rounds: int, *, steps: int = ENOUGH_STEPS, patients: int = 64) -> dict[str, Any]:
    """Both models' reports; `rounds` times two samples of each. Fewer than `ENOUGH_STEPS` steps memorise nothing.

    Raises: AssertionError: the report does not tell them apart.
    """
    found = {
        "memorised": measured(folder / "two", 2, steps, 2 * rounds),
        "not memorised": measured(folder / "many", patients, steps, 2 * rounds),
    }
    if steps >= ENOUGH_STEPS:
        memorised = found["memorised"]
        assert memorised["figures"]["copy_rate"] > 0.5, memorised
        assert memorised["warnings"], memorised
    other = found["not memorised"]
    assert other["figures"]["copy_rate"] == 0, other
    assert not other["warnings"], other
    return found
