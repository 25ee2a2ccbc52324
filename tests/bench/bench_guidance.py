"""What a guide adds to a step of a sampler, one thread: `python -m tests.bench.bench_guidance`."""

import json
import time
from dataclasses import replace
from typing import Any

import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.intensity import HounsfieldWindow
from prdit_models.inverse.guides import GUIDES
from prdit_models.inverse.model_range import InModelRange
from prdit_models.networks.config import model_config
from prdit_models.networks.prdit import PRDiT
from tests.oracles import operators

PRESET, SIZE, STEPS, REPEATS = "XS/12/4", 64, 2, 3
WINDOW = HounsfieldWindow()


def run() -> dict[str, Any]:
    """Seconds per evaluation without a guide, and with each over that."""
    torch.set_num_threads(1)
    model, process = PRDiT(model_config(PRESET, SIZE)).eval(), CosineProcess()
    kept = torch.zeros(SIZE, SIZE, SIZE, dtype=torch.bool)
    kept[:, : SIZE // 2] = True
    made = {"means of 2³": operators.block_means(20.0), "mask": operators.mask(kept, 20.0)}
    truth = torch.randn(1, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    guides: dict[str, Any] = {"none": None}
    for operator_name, operator in made.items():
        measured = InModelRange(operator, WINDOW, operator.forward(WINDOW.to_hu(truth)))
        guides |= {f"{name}, {operator_name}": GUIDES[name](measured, within_window=False) for name in GUIDES.names()}

    def seconds(guide: Any) -> float:
        began = (
            time.process_time()
        )  # of one thread; unlike the clock's, it does not count what others compute meanwhile
        generators = [torch.Generator().manual_seed(0)]
        sample(model, process, Sampler("euler", STEPS), volume_size=SIZE, generators=generators, guide=guide)
        return (time.process_time() - began) / STEPS

    def seconds_of_end(guide: Any) -> float:
        """Once per volume: of a state of which half of the voxels are beyond the window."""
        state = -1 + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
        began = time.process_time()
        guide.ended(state, state)
        return time.process_time() - began

    best = dict.fromkeys(guides, float("inf"))
    for _ in range(REPEATS):  # in turn, because machines are noisy
        for name, guide in guides.items():
            best[name] = min(best[name], seconds(guide))
    for name in [name for name in guides if name.startswith("projection")]:
        end = replace(guides[name], within_window=True)
        best[f"end of {name}, once per volume"] = min(seconds_of_end(end) for _ in range(REPEATS))
    rows = [
        {"guide": name, "ms per evaluation": round(1000 * value, 1), "over unguided": round(value / best["none"], 2)}
        for name, value in best.items()
    ]
    return {
        "title": "Guided sampling: what a guide adds to a step",
        "rows": rows,
        "notes": [
            f"{PRESET} at {SIZE}³, one volume, one thread, best of {REPEATS}. `pigdm` and `dps` differentiate the network."
        ],
    }


if __name__ == "__main__":
    print(json.dumps(run()))
