"""Time and memory of the measurement operators: `python -m tests.bench.bench_operators`."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from prdit_models.inverse.grid import Grid3
from prdit_models.inverse.operator import adjoint_error, operator_from_dict
from prdit_models.tracing import MemoryTrace

REPEATS = 5
SIZE = 128
GRID = Grid3((SIZE, SIZE, SIZE), (2.0, 2.0, 2.0))
RADIOGRAPHS: dict[str, Any] = {
    "name": "projection",
    "views": [{"angle_deg": 0.0}, {"angle_deg": 90.0}],
    "detector_shape": [256, 256],
    "detector_pitch_mm": 1.6,
    "source_to_isocentre_mm": 1500.0,
    "source_to_detector_mm": 1800.0,
}
SCANNER: dict[str, Any] = {"source_to_isocentre_mm": 595.0, "source_to_detector_mm": 1085.6}
CASES: dict[str, dict[str, Any]] = {
    "downsampling by 2": {"name": "downsampling", "factor": 2},
    "infilling of half": {"name": "mask", "region": "half", "side": "left"},
    "blur, 5 mm": {"name": "blur", "fwhm_mm": 5.0},
    "thick slices, 5 mm": {"name": "thick-slices", "thickness_mm": 5.0},
    "projection, 2 views of 256²": RADIOGRAPHS,
    "sparse-view CT, 8 fan views": {"name": "sparse-view", "num_views": 8, **SCANNER},
}


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Median wall-clock and processor seconds after one run that fills the tables."""
    work()
    walls, processor = [], []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(processor)


def peak_mb(work: Callable[[], object]) -> float:
    """Of the tensors made on the way, without the tables that are kept."""
    with MemoryTrace() as trace:
        work()
    return trace.peak_bytes / 2**20


def measure(what: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: both directions in float32."""
    operator = operator_from_dict(settings, GRID)
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(1, 1, *GRID.shape, generator=generator) * 300
    measurement = operator.forward(volume)
    row: dict[str, Any] = {"what": what}
    for name, work in (
        ("forward", lambda: operator.forward(volume)),
        ("adjoint", lambda: operator.adjoint(measurement)),
    ):
        wall, cpu = seconds(work)
        row |= {f"{name}_s": wall, f"{name}_cpu_s": cpu, f"{name}_mb": round(peak_mb(work), 1)}
    row["adjoint / forward"] = row["adjoint_cpu_s"] / row["forward_cpu_s"]
    row["adjoint_error"] = adjoint_error(operator, generator, torch.float32)
    return row


def main() -> None:
    rows = [measure(what, settings) for what, settings in CASES.items()]
    notes = [
        f"{SIZE}³ voxels of 2 mm, float32, {torch.get_num_threads()} threads, medians of {REPEATS}. `_cpu_s` is processor time of "
        "all threads; `_mb` counts tensors alive at once, the result among them."
    ]
    sys.stdout.write(json.dumps({"title": "Measurement operators", "rows": rows, "notes": notes}) + "\n")


if __name__ == "__main__":
    main()
