"""FID against evaluations for every sampler, one checkpoint: `python -m tests.bench.fid_against_steps CHECKPOINT STORE`.

Same weights, same seeds. Prints JSON, draws docs/img/samplers-fid.png, rewrites the table in docs/samplers.md. Two figures a cell:
FID to the store's volumes (with random features and few volumes a number for comparison only), and the root mean square difference
in HU to the same seeds at 250 evaluations of `dpmpp-2m` (how far deterministic sampling is from converged).
"""

import argparse
import json
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.metrics.fid import frechet_distance
from prdit_models.samplers import Sampler
from prdit_models.samplers import sample as draw
from storage.artifacts import committed_ref
from storage.volume_store import VolumeStore
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.features import load_extractor
from tasks.sample.checkpoint import load_model
from tasks.sample.run import volume_seed

mpl.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- begin FID table -->", "<!-- end FID table -->"
REFERENCE = Sampler("dpmpp-2m", 250)
STEPS = (5, 10, 20, 50, 100)
SAMPLERS = ("dpmpp-2m", "dpmpp-2m-sde", "heun", "rotation", "euler", "predictor-corrector")
PUBLISHED = tuple(Sampler("predictor-corrector", n, "published") for n in (20, 50, 200))
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--volumes", type=int, default=16)
    arguments = parser.parse_args()
    ref = committed_ref(arguments.checkpoint)
    if ref is None:
        parser.error(f"{arguments.checkpoint} is not the directory of a committed checkpoint")
    model, info = load_model(ref, "ema", torch.device("cpu"))
    network = load_extractor(EvaluateConfig()).network

    def features(volumes: torch.Tensor) -> NDArray[np.float32]:
        with torch.no_grad():
            clipped = volumes.clamp(info.window.model_lower, info.window.model_upper)
            return np.concatenate([network(part).numpy() for part in clipped.split(4)])

    def volumes_of(sampler: Sampler) -> torch.Tensor:
        seeds = [volume_seed(42, index) for index in range(arguments.volumes)]
        parts = [
            draw(
                model,
                info.process,
                sampler,
                volume_size=info.model.volume_size,
                generators=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + BATCH]],
            ).x
            for start in range(0, len(seeds), BATCH)
        ]
        return torch.cat(parts)

    store = VolumeStore.open(arguments.store)
    views = [store.read_view(name, info.view.size, info.view.edge, info.view.centre) for name in store.volume_ids()]
    scans = torch.stack([info.window.to_model(torch.from_numpy(hu))[None] for hu in views])
    real, real_std = features(scans), float(info.window.to_hu(scans).std())
    reference = volumes_of(REFERENCE)
    rows = []
    for sampler in (*(Sampler(name, n) for name in SAMPLERS for n in STEPS), *PUBLISHED):
        began = time.monotonic()
        volumes = volumes_of(sampler)
        hu = info.window.to_hu(volumes)
        row = {
            "sampler": sampler.name,
            "schedule": sampler.schedule,
            "n": sampler.num_steps,
            "fid": round(frechet_distance(real, features(volumes)), 3),
            "rms_hu_to_converged": round(float((hu - info.window.to_hu(reference)).square().mean().sqrt()), 1),
            "hu_std_ratio": round(float(hu.clamp(info.window.lower_hu, info.window.upper_hu).std()) / real_std, 3),
        }
        rows.append(row)
        sys.stderr.write(f"{row} {time.monotonic() - began:.0f} s\n")
    result = {"volumes": arguments.volumes, "real": len(scans), "step": info.step, "rows": rows}
    sys.stdout.write(json.dumps(result) + "\n")
    write(result)


def write(result: dict) -> None:
    """Plot and table from a result."""
    rows = result["rows"]
    lines = ["| sampler | schedule | " + " | ".join(f"n = {n}" for n in (*STEPS, 200)) + " |", "|---|---|" + "---|" * 6]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, schedule in dict.fromkeys((row["sampler"], row["schedule"]) for row in rows):
        mine = {row["n"]: row for row in rows if (row["sampler"], row["schedule"]) == (name, schedule)}
        cells = [
            f"{mine[n]['fid']:.1f} / {mine[n]['rms_hu_to_converged']:.0f} / {mine[n]['hu_std_ratio']:.2f}"
            if n in mine
            else ""
            for n in (*STEPS, 200)
        ]
        lines.append(f"| `{name}` | {schedule} | " + " | ".join(cells) + " |")
        label = name if schedule == "even" else f"{name} (published)"
        style = "-o" if schedule == "even" else "--s"
        panels[0].plot(list(mine), [row["fid"] for row in mine.values()], style, label=label, markersize=4)
        panels[1].plot(list(mine), [row["hu_std_ratio"] for row in mine.values()], style, label=label, markersize=4)
    for panel, title in zip(panels, ("FID (random features)", "HU standard deviation / real"), strict=True):
        panel.set(xscale="log", xlabel="evaluations a volume", title=title)
        panel.grid(alpha=0.3)
    panels[0].set_yscale("log")
    panels[1].legend(fontsize=7)
    figure.savefig(DOCS / "img" / "samplers-fid.png", dpi=100)
    path = DOCS / "samplers.md"
    text = path.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    table = "\n".join(lines)
    note = f"{result['volumes']} volumes against {result['real']} scans, weights of step {result['step']}."
    path.write_text(
        f"{before}{BEGIN}\n{note} Each cell: FID / rms HU to converged / HU std ratio.\n\n{table}\n{END}{after}"
    )


if __name__ == "__main__":
    main()
