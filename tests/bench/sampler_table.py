"""Samplers and outputs of one checkpoint side by side: `python -m tests.bench.sampler_table CHECKPOINT STORE`.

Same weights, same seeds, no feature network. Prints JSON, draws docs/img/samplers.png, rewrites the tables in docs/samplers.md.
Figures per cell: volumes inside all anatomy limits; mean HU minus that of the scans; HU standard deviation over the scans'; grain
(median distance of a tissue voxel to its neighbours) over the scans'; for samplers without noise of their own, the root mean square
difference in HU to the same seeds at 100 evaluations of `dpmpp-2m` (what is left of the discretisation). A second table compares
the image estimates of the parametrisations on the noised scans themselves.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.parametrization import Heads, from_velocity
from prdit_models.diffusion.sampling import Denoiser, Sampler
from prdit_models.diffusion.sampling import sample as draw
from prdit_models.metrics.chest import Anatomy
from storage.artifacts import committed_ref
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_model
from tasks.sample.draw import volume_seed

mpl.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOISED_AT = (10, 50, 100, 200, 400, 600, 800, 950)
REFERENCE = Sampler("dpmpp-2m", 100)
STEPS = (5, 10, 20, 50)
STOCHASTIC = ("dpmpp-2m-sde", "predictor-corrector")
COMPARED = (
    *(Sampler(name, n) for name in ("dpmpp-2m", "dpmpp-2m-sde", "heun", "rotation", "euler") for n in STEPS),
    *(Sampler("predictor-corrector", n, schedule) for schedule in ("even", "published") for n in STEPS),
    *(Sampler(name, n, parametrization="image") for name in ("dpmpp-2m", "predictor-corrector") for n in STEPS),
)
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--keep", type=Path, help="directory for every volume drawn, as .npy, to look at")
    arguments = parser.parse_args()
    ref = committed_ref(arguments.checkpoint)
    if ref is None:
        parser.error(f"{arguments.checkpoint} is not the directory of a committed checkpoint")
    model, info = load_model(ref, "ema", torch.device("cpu"))
    if not isinstance(info.process, CosineProcess):
        parser.error(f"{arguments.checkpoint} is a flow-matching model; this compares samplers of the cosine process")
    lower, upper = info.window.lower_hu, info.window.upper_hu

    def hu_of(sampler: Sampler) -> dict[str, NDArray[np.float32]]:
        """Volumes (n, S, S, S) in HU, saturated to the window, by output."""
        seeds = [volume_seed(42, index) for index in range(arguments.volumes)]
        parts = [
            draw(
                model,
                info.process,
                sampler,
                volume_size=info.view.size,
                generators=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + BATCH]],
            )
            for start in range(0, len(seeds), BATCH)
        ]
        outputs = {"state": [part.x for part in parts], "image": [part.x0 for part in parts]}
        return {
            name: np.clip(info.window.to_hu(torch.cat(found)[:, 0].numpy()), lower, upper)
            for name, found in outputs.items()
        }

    def drawn() -> Iterator[tuple[Sampler, str, NDArray[np.float32]]]:
        for sampler in COMPARED:
            for output, hu in hu_of(sampler).items():
                if sampler.name.startswith("dpmpp") and sampler.parametrization == "image" and output == "state":
                    continue  # the last step of the multistep solver returns the image estimate itself
                yield sampler, output, hu

    store = VolumeStore.open(arguments.store)
    views = [store.read_view(name, info.view.size, info.view.edge, info.view.centre) for name in store.volume_ids()]
    scans = torch.stack([info.window.to_model(torch.from_numpy(hu))[None] for hu in views])
    real_hu = np.clip(np.stack(views), lower, upper)
    real_grain = _grain([Anatomy.of(hu, info.voxel_mm) for hu in real_hu])
    reference = hu_of(REFERENCE)["state"]
    rows = []
    for sampler, output, hu in drawn():
        if arguments.keep is not None:
            name = f"{sampler.name}-{sampler.schedule}-{sampler.parametrization}-{output}-{sampler.num_steps}.npy"
            np.save(arguments.keep / name, hu)
        seen = [Anatomy.of(volume, info.voxel_mm) for volume in hu]
        same_equation = sampler.name not in STOCHASTIC and sampler.parametrization == "velocity" and output == "state"
        row = {
            "sampler": sampler.name,
            "schedule": sampler.schedule,
            "parametrization": sampler.parametrization,
            "output": output,
            "n": sampler.num_steps,
            "passed": sum(not volume.failed for volume in seen),
            "mean_hu_error": round(float(hu.mean()) - float(real_hu.mean()), 1),
            "hu_std_ratio": round(float(hu.std() / real_hu.std()), 3),
            "grain_ratio": round(_grain(seen) / real_grain, 3),
            "rms_hu_to_converged": round(float(np.sqrt(np.square(hu - reference).mean())), 1)
            if same_equation
            else None,
        }
        rows.append(row)
        sys.stderr.write(f"{row}\n")
    result = {
        "volumes": arguments.volumes,
        "real": len(scans),
        "step": info.step,
        "rows": rows,
        "estimates": estimate_errors(model, info.process, scans),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    write(result)


def estimate_errors(model: Denoiser, process: CosineProcess, scans: torch.Tensor) -> list[dict[str, float]]:
    """Mean squared errors of image estimates in noised scans: of the image head, of what the noise head leaves in the state, of
    `velocity`, and of the best mix of the first two in hindsight."""
    rows = []
    eps = process.noise(tuple(scans.shape), torch.Generator().manual_seed(0))
    for t in NOISED_AT:
        x = process.q_sample(scans, torch.full((len(scans),), t), eps)
        angle = float(process.angle(torch.tensor(t)))
        sin, cos = math.sin(angle), math.cos(angle)
        with torch.no_grad():
            heads = Heads(*process.estimates(model(x, torch.tensor(t)), x, sin, cos))
        left = (x - sin * heads.eps) / cos
        difference = heads.x0 - left
        share = -((left - scans) * difference).sum() / difference.square().sum()
        found = {
            "image": heads.x0,
            "noise": left,
            "velocity": from_velocity(x, heads, sin, cos).x0,
            "best": left + share * difference,
        }
        rows.append({"t": t, **{key: float((image - scans).square().mean()) for key, image in found.items()}})
    return rows


def _grain(volumes: list[Anatomy]) -> float:
    return float(np.median([volume.figures["grain_hu"] or 0.0 for volume in volumes]))


def _cell(row: dict[str, Any]) -> str:
    rms = "" if row["rms_hu_to_converged"] is None else f" / {row['rms_hu_to_converged']:.0f}"
    return (
        f"**{row['passed']}** / {row['mean_hu_error']:+.0f} / {row['hu_std_ratio']:.2f} / {row['grain_ratio']:.1f}{rms}"
    )


def write(result: dict[str, Any]) -> None:
    """Plot and table from a result."""
    rows = result["rows"]
    lines = [
        "| sampler | schedule | parametrisation | output | " + " | ".join(f"n = {n}" for n in STEPS) + " |",
        "|---|---|---|---|" + "---|" * len(STEPS),
    ]
    figure, panels = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    keys = ("sampler", "schedule", "parametrization", "output")
    for kind in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        mine = {row["n"]: row for row in rows if tuple(row[key] for key in keys) == kind}
        name, schedule, parametrization, output = kind
        cells = [_cell(mine[n]) if n in mine else "" for n in STEPS]
        lines.append(f"| `{name}` | {schedule} | {parametrization} | {output} | " + " | ".join(cells) + " |")
        extra = [part for part in (schedule, parametrization, output) if part not in ("even", "velocity", "image")]
        label = f"{name} ({', '.join(extra)})" if extra else name
        for panel, figure_of in zip(panels, ("passed", "hu_std_ratio", "grain_ratio"), strict=True):
            values = [row[figure_of] for row in mine.values()]
            panel.plot(list(mine), values, "--s" if output == "state" else "-o", label=label, markersize=4)
    titles = (
        f"volumes of {result['volumes']} inside the anatomy limits",
        "HU standard deviation / real",
        "grain / real",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xscale="log", xlabel="evaluations a volume", title=title)
        panel.set_xticks(STEPS, [str(n) for n in STEPS], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.savefig(DOCS / "img" / "samplers.png", dpi=100)
    note = (
        f"{result['volumes']} volumes, weights of step {result['step']}, {result['real']} scans. Each cell: **volumes inside all "
        "anatomy limits** / mean HU\nminus real / HU standard deviation over real / grain over real (/ rms HU to converged)."
    )
    _replace("sampler table", [note, "", *lines])
    estimates = result["estimates"]
    _replace(
        "estimates table",
        [
            "| mean squared error | " + " | ".join(f"t = {row['t']}" for row in estimates) + " |",
            "|---|" + "---|" * len(estimates),
            *(
                f"| {title} | " + " | ".join(f"{row[key]:.5f}" for row in estimates) + " |"
                for key, title in (
                    ("image", "image head (`image`)"),
                    ("noise", "what the noise head leaves in the state"),
                    ("velocity", "`velocity`"),
                    ("best", "best mix of the two, in hindsight"),
                )
            ),
        ],
    )


def _replace(name: str, lines: list[str]) -> None:
    """Put lines between the marks of a generated part of docs/samplers.md."""
    path = DOCS / "samplers.md"
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    body = "\n".join(lines)
    path.write_text(f"{before}{begin}\n{body}\n{end}{after.rstrip()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
