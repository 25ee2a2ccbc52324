"""What stage 3 adds, on real CT. Two commands:

`python -m tests.bench.refinement compare STORE CHECKPOINT …`: refiners trained alike but for `low_frequency_weight`, one JSON line
each: FID (random features) and HU figures of samples from the same seeds, and how far the refined image, pooled, is from the image
of the model below (rms HU, mean over the store's scans).

`python -m tests.bench.refinement pictures STORE CHECKPOINT`: docs/img/refinement.png. Left to right: what the model below sees of a
noised held-out scan, the refined estimate, the scan; below, the same two of a sample.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prdit_models.diffusion.process import Process
from prdit_models.diffusion.sampling import Sampler
from prdit_models.diffusion.sampling import sample as draw
from prdit_models.metrics.extractors.random import random_medicalnet
from prdit_models.metrics.fid import frechet_distance
from prdit_models.networks.cascade import CascadeParts, RefinedPRDiT, low_frequency_loss
from storage.artifacts import committed_ref, input_ref
from storage.documents.provenance import Provenance
from storage.documents.split import Split
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import CheckpointInfo, load_info, load_model
from tasks.sample.draw import volume_seed

mpl.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).resolve().parents[2] / "docs" / "img" / "refinement.png"
TIMES = (50, 200, 400, 600, 800, 950)
SAMPLER = Sampler("predictor-corrector", 50)
SHOWN_T = 300


def open_refiner(path: Path) -> tuple[RefinedPRDiT, CheckpointInfo, Process]:
    ref = committed_ref(path)
    if ref is None or ref.kind != "checkpoint" or load_info(ref).family != "refiner":
        raise ValueError(f"{path} is not the directory of a refiner's checkpoint")
    model, info = load_model(ref, "ema", torch.device("cpu"))
    assert isinstance(model, RefinedPRDiT)
    assert info.process is not None
    return model, info, info.process


def scan(store: VolumeStore, name: str, info: CheckpointInfo) -> Tensor:
    hu = store.read_view(name, info.view.size, info.view.edge, info.view.centre)
    return info.window.to_model(torch.from_numpy(hu))[None, None]


def features(network: torch.nn.Module, volumes: Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.concatenate([network(part).numpy() for part in volumes.clamp(-1, 1).split(2)])


@torch.no_grad()
def compare(store: VolumeStore, path: Path, num_volumes: int) -> dict[str, object]:
    model, info, process = open_refiner(path)
    scans = torch.cat([scan(store, name, info) for name in store.volume_ids()])
    half_range_hu = (info.window.upper_hu - info.window.lower_hu) / 2
    distances = {}
    for t in TIMES:
        eps = process.noise(tuple(scans.shape), torch.Generator().manual_seed(t))
        times = torch.full((len(scans),), t)
        parts = model.forward_parts(process.q_sample(scans, times, eps), times)
        distances[str(t)] = round(half_range_hu * float(low_frequency_loss(parts, 1).mean().sqrt()), 1)
    generators = [torch.Generator().manual_seed(volume_seed(42, index)) for index in range(num_volumes)]
    size = info.view.size
    drawn = torch.cat(
        [
            draw(model, process, SAMPLER, volume_size=size, generators=generators[start : start + 2]).x
            for start in range(0, num_volumes, 2)
        ]
    )
    network = random_medicalnet(0)
    return {
        "low_frequency_weight": Provenance.load(path).config["settings"]["low_frequency_weight"],
        "step": info.step,
        "fid": round(frechet_distance(features(network, scans), features(network, drawn)), 1),
        "mean_hu_minus_real": round(half_range_hu * float(drawn.mean() - scans.mean()), 1),
        "hu_std_ratio": round(float(drawn.clamp(-1, 1).std() / scans.std()), 3),
        "rms_hu_to_model_below_by_t": distances,
    }


@torch.no_grad()
def pictures(store: VolumeStore, path: Path) -> None:
    model, info, process = open_refiner(path)
    ref = committed_ref(path)
    assert ref is not None
    held_out = Split.load(input_ref(ref, "split").path).role("val")[0]
    x0 = scan(store, held_out, info)
    eps = process.noise(tuple(x0.shape), torch.Generator().manual_seed(0))
    time = torch.tensor([SHOWN_T])
    estimate = model.forward_parts(process.q_sample(x0, time, eps), time)
    last: list[CascadeParts] = []

    class Recorded(torch.nn.Module):
        prepared = staticmethod(model.prepared)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            last[:] = [model.forward_parts(x, t)]
            return last[0].upsampled + last[0].head

    generators = [torch.Generator().manual_seed(volume_seed(42, 0))]
    drawn = draw(Recorded(), process, SAMPLER, volume_size=info.view.size, generators=generators).x
    rows = [
        {
            f"noised scan (t = {SHOWN_T}): model below": estimate.upsampled[:, -1:],
            "refined": (estimate.upsampled + estimate.head)[:, -1:],
            "scan": x0,
        },
        {"sample, last step: model below": last[0].upsampled[:, -1:], "refined sample": drawn},
    ]
    figure, panels = plt.subplots(2, 3, figsize=(7.5, 5.4), layout="constrained")
    for axis in panels.flat:
        axis.axis("off")
    for places, row in zip(panels, rows, strict=True):
        for axis, (title, volume) in zip(places, row.items(), strict=False):
            hu = info.window.to_hu(volume[0, 0]).numpy()
            axis.imshow(hu[::-1, hu.shape[1] // 2], cmap="gray", vmin=-1000, vmax=400)
            axis.set_title(title, fontsize=7)
    figure.savefig(FIGURE, dpi=68)
    sys.stderr.write(f"wrote {FIGURE}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("compare", "pictures"))
    parser.add_argument("store", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--volumes", type=int, default=6)
    arguments = parser.parse_args()
    store = VolumeStore.open(arguments.store)
    for path in arguments.checkpoints:
        if arguments.command == "pictures":
            pictures(store, path)
        else:
            sys.stdout.write(json.dumps(compare(store, path, arguments.volumes)) + "\n")


if __name__ == "__main__":
    main()
