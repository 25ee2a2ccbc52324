"""`Linear` against PyTorch's own linear layers: `python -m tests.bench.bench_linear`, alternating runs in one process."""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.networks import linear
from prdit_models.networks.config import model_config
from prdit_models.networks.prdit import PRDiT, trainable_parameters

REPEATS = 20
CHOICES: dict[str, Callable[[], bool]] = {"convolution": lambda: True, "linear": lambda: False}


def training_step(preset: str, size: int, batch: int) -> Callable[[], object]:
    """Forward and backward pass, clipping and AdamW."""
    network, process = PRDiT(model_config(preset, size)), CosineProcess()
    parameters = trainable_parameters(network)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(batch, 1, size, size, size, generator=generator) * 2 - 1
    t, eps = process.draw_steps(batch, generator), process.noise(tuple(x0.shape), generator)
    x_t = process.q_sample(x0, t, eps)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        process.losses(network(x_t, t), x0, eps)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def sampling_forward(preset: str, size: int, batch: int) -> Callable[[], object]:
    """One evaluation of the sampler, modulations prepared."""
    network = PRDiT(model_config(preset, size)).eval().requires_grad_(False)
    x, t = torch.randn(batch, 1, size, size, size), torch.tensor(400.0)

    def forward() -> None:
        with torch.no_grad(), network.prepared(t[None]):
            network(x, t)

    return forward


def compare(what: str, work: Callable[[], object]) -> dict[str, object]:
    """Median seconds of both, run in turns after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in CHOICES}
    for repeat in range(REPEATS + 1):
        for name, choice in CHOICES.items():
            linear.convolution_is_faster = choice  # type: ignore[assignment]
            began = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": what,
        **{f"{name}_s": value for name, value in medians.items()},
        "gain": medians["linear"] / medians["convolution"],
    }


def main() -> None:
    taken = linear.convolution_is_faster()
    rows = [
        compare("demo, step of stage 1 (XS/10/0, 32³, batch 4)", training_step("XS/10/0", 32, 4)),
        compare("demo, step of stage 2 (XS/10/4, 32³, batch 4)", training_step("XS/10/4", 32, 4)),
        compare("small, step of stage 1 (XS/12/0, 32³, batch 8)", training_step("XS/12/0", 32, 8)),
        compare("small, step of stage 2 (XS/12/4, 32³, batch 8)", training_step("XS/12/4", 32, 8)),
        compare("demo, sampling forward (XS/10/4, 32³, batch 8)", sampling_forward("XS/10/4", 32, 8)),
        compare("small, sampling forward (XS/12/4, 32³, batch 4)", sampling_forward("XS/12/4", 32, 4)),
        compare("B/12/4, sampling forward (64³, batch 1)", sampling_forward("B/12/4", 64, 1)),
    ]
    notes = [f"{torch.get_num_threads()} threads. `Linear` takes the convolution here: {taken}."]
    sys.stdout.write(json.dumps({"title": "Linear layers as convolutions", "rows": rows, "notes": notes}) + "\n")


if __name__ == "__main__":
    main()
