"""Golden values of every stage on the small phantom: `python -m tests.integration.golden` writes golden.json anew.

A stage whose output changes must raise its recipe version (the cache would return the old output otherwise); only then are the
values recorded anew, by the command above, and the change of golden.json is part of the same commit.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flows.config import load_config
from flows.stages import rows, walk
from storage.artifacts import Ref
from storage.files import read_json, write_json_atomic
from storage.phantom.series import write_demo_data
from storage.volume_store import VolumeStore
from tasks.evaluate.stage import EVALUATE
from tasks.ingest.stage import INGEST
from tasks.run.stage import RunContext
from tasks.sample.stage import SAMPLE
from tasks.split.stage import SPLIT
from tasks.train.spec import METRICS, training_stage

GOLDEN = Path(__file__).with_name("golden.json")


def compute(root: Path) -> dict[str, Any]:
    """Run every stage of the tiny configuration in `root`; recipe version and characteristic values by stage."""
    write_demo_data(root / "source", num_patients=3, small=True)
    (root / "key").write_text("00" * 32)
    short = {"steps": 5, "val_every": 5, "log_every": 1}
    overrides = {"recipe": {"local": short, "global": short}, "ingest": {"patient_key_file": str(root / "key")}}
    config = load_config("tiny", overrides)
    context = RunContext(workdir=root / "work")
    config = config.model_copy(update={"source": str(root / "source"), "store": str(root / "store")})
    table = rows(config)
    ran = walk(table, "evaluate", {}, lambda row, inputs: row.run(inputs, context, _silent))
    refs = {name: outcome.ref for name, outcome in ran}
    local, global_ = training_stage("local"), training_stage("global")
    values = {
        INGEST: _volumes(refs["ingest"].path),
        SPLIT: read_json(refs["split"].path / "split.json")["patients"],
        local: _losses(refs[local.name]),
        global_: _losses(refs[global_.name]),
        SAMPLE: _volumes(refs["sample"].path / "samples.zarr"),
        EVALUATE: EVALUATE.points(refs["evaluate"].path)[0],
    }
    return {stage.name: {"recipe": stage.recipe, "values": value} for stage, value in values.items()}


def _volumes(path: Path) -> dict[str, Any]:
    store = VolumeStore.open(path)
    result = {}
    for volume_id in store.volume_ids():
        volume = store.read_level(volume_id, store.grid.num_levels - 1)
        hu = volume.hu.astype(np.float64)
        centre = hu[tuple(n // 2 for n in hu.shape)]
        figures = [hu.mean(), hu.std(), np.abs(np.diff(hu, axis=2)).mean(), centre, *volume.origin_mm, *hu.shape]
        result[volume_id] = [round(float(figure), 4) for figure in figures]
    return result


def _losses(ref: Ref) -> list[float]:
    points = [json.loads(line) for line in (ref.path / METRICS).read_text().splitlines()]
    return [
        round(point[name], 6)
        for point in points
        for name in ("train/loss", "val/loss", "val/loss_ema")
        if name in point
    ]


def _silent(done: int, total: int) -> None:
    """No progress."""


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        write_json_atomic(GOLDEN, compute(Path(folder)))
    sys.stdout.write(f"wrote {GOLDEN}\n")
