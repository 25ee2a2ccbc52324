"""B/12/4 against the literal oracle and against the machine's floor: `python -m tests.bench.bench_backbone` (2 threads).

Times are medians of alternating runs in one process, so that other work on the machine affects both alike; some are repeated as CPU
time of one thread. The oracle always works in float32. The floor of a forward pass is its FLOPs over the best rate one of its
linear layers reaches in the same run and precision. Each peak of memory is measured in a process of its own:
`python -m tests.bench.bench_backbone peak product|oracle SIZE`.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampling import Sampler, sample
from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.linear import Linear
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from tests.oracles import prdit_literal

PRESET = "B/12/4"
THREADS = 2
SIZES = {64: 7, 128: 3}  # edge: repeats
PEAK_SIZE = 128
SAMPLER_STEPS = 20
FLAT_STEPS = 1000
MIB = 2**20


def forward_flops(config: ModelConfig) -> float:
    """FLOPs of one forward pass of one volume: products of the linear layers and of the attention."""
    width, hidden, tokens = config.token_width, config.hidden_size, config.num_tokens
    local = 6 * width**2 + width * config.output_width
    embedder = width * 4 * hidden + 4 * hidden * hidden + width * hidden
    blocks = config.depth * 12 * hidden**2 + hidden * config.output_width
    return 2.0 * tokens * (local + embedder + blocks) + 4.0 * config.depth * tokens**2 * hidden


def rates(shapes: Iterable[tuple[int, int]], clock: Callable[[], float], repeats: int = 9) -> list[float]:
    """GFLOP/s of 512 tokens through linear layers (in, out), the best of some runs, because other work can only slow one down."""
    found = []
    for width, out in shapes:
        layer, x, least = Linear(width, out), torch.randn(1, 512, width), float("inf")
        for _ in range(repeats):
            began = clock()
            layer(x)
            least = min(least, clock() - began)
        found.append(2e-9 * 512 * width * out / least)
    return found


def best_rate(config: ModelConfig, clock: Callable[[], float]) -> float:
    """GFLOP/s of the most favourable of the model's own layers."""
    width, hidden = config.token_width, config.hidden_size
    return max(rates([(width, width), (hidden, 4 * hidden), (4 * hidden, hidden), (hidden, 3 * hidden)], clock))


def alternating(
    work: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each, run in turns after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, call in work.items():
            began = clock()
            call()
            if repeat:
                seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def random_model(size: int, **options: Any) -> PRDiT:
    """The preset with weights that make every branch contribute (the published start outputs 0)."""
    model = PRDiT(model_config(PRESET, size), **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return model


def in_bfloat16(work: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return work()

    return call


def compare_forward(size: int, repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """A row in float32 and one in bfloat16 against the same runs of the oracle in float32."""
    model = random_model(size).eval().requires_grad_(False)
    state = dict(model.state_dict())
    x = torch.randn(1, 1, size, size, size, generator=torch.Generator().manual_seed(1))
    oracle = prdit_literal.from_config(model.config.to_dict())
    work: dict[str, Callable[[], Any]] = {
        "oracle": lambda: oracle(state, x, 100),
        "fp32": lambda: model(x, 100),
        "bf16": in_bfloat16(lambda: model(x, 100)),
    }
    with torch.no_grad():
        exact = work["oracle"]()
        differences = {name: float((call().float() - exact).abs().max()) for name, call in work.items()}
        seconds = alternating(work, repeats, clock)
        best = {
            "fp32": best_rate(model.config, clock),
            "bf16": in_bfloat16(lambda: best_rate(model.config, clock))(),
        }
    how = f"forward {size}³" if clock is time.perf_counter else f"forward {size}³, CPU time of one thread"
    return [row(f"{how}, {name}", seconds, name, model.config, best[name], differences[name]) for name in best]


def row(
    what: str, seconds: dict[str, float], name: str, config: ModelConfig, rate: float, difference: float
) -> dict[str, Any]:
    floor = forward_flops(config) / (rate * 1e9)
    return {
        "what": what,
        "product_s": seconds[name],
        "oracle_s": seconds["oracle"],
        "speed_up": seconds["oracle"] / seconds[name],
        "floor_s": floor,
        "over_floor": seconds[name] / floor,
        "gflop_s": rate,
        "max_abs_difference": difference,
    }


def training_step(size: int, which: str) -> Callable[[], object]:
    """Forward and backward of the stage-2 loss, gradients only for what stage 2 trains."""
    model = random_model(size, checkpointing=which == "product with checkpointing")
    process = CosineProcess()
    generator = torch.Generator().manual_seed(2)
    x0 = torch.rand(1, 1, size, size, size, generator=generator) * 2 - 1
    t, eps = torch.tensor([400]), process.noise(tuple(x0.shape), generator)
    x_t = process.q_sample(x0, t, eps)
    forward: Callable[[], Tensor]
    if which == "oracle":
        oracle, state = prdit_literal.from_config(model.config.to_dict()), dict(model.named_parameters())
        forward = lambda: oracle(state, x_t, t)  # noqa: E731
    else:
        forward = lambda: model(x_t, t)  # noqa: E731
    parameters = trainable_parameters(model)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        process.losses(forward(), x0, eps)["loss"].backward()

    return step


def compare_training(clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    work = {name: training_step(64, name) for name in ("oracle", "product", "product with checkpointing")}
    work["product in bf16"] = in_bfloat16(training_step(64, "product"))
    seconds = alternating(work, 7, clock)
    how = "" if clock is time.perf_counter else ", CPU time of one thread"
    return [
        {
            "what": f"forward + backward 64³{how}, {name.removeprefix('product').removeprefix(' ') or 'fp32'}",
            "product_s": seconds[name],
            "oracle_s": seconds["oracle"],
            "speed_up": seconds["oracle"] / seconds[name],
        }
        for name in list(work)[1:]
    ]


def one_thread() -> list[dict[str, Any]]:
    """The comparisons at 64³ by CPU time, which other work on the machine hardly affects."""
    torch.set_num_threads(1)
    try:
        compared = compare_forward(64, 7, time.thread_time) + compare_training(time.thread_time)
        return [*compared, sampling_overhead(time.thread_time)]
    finally:
        torch.set_num_threads(THREADS)


def peak(which: str, size: int) -> float:
    """MiB by which resident memory rises above its level before a training step (model and gradients exist already)."""
    step = training_step(size, which)
    process = psutil.Process()
    highest, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    baseline = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    ended.set()
    watcher.join()
    return (highest - baseline) / MIB


def compare_peaks() -> dict[str, Any]:
    peaks = {}
    for which in ("product with checkpointing", "product", "oracle"):
        command = [sys.executable, "-m", "tests.bench.bench_backbone", "peak", which, str(PEAK_SIZE)]
        done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
        peaks[which] = float(done.stdout)
    return {
        "what": f"training peak {PEAK_SIZE}³, MiB above baseline",
        "product_mib": peaks["product"],
        "checkpointing_mib": peaks["product with checkpointing"],
        "oracle_mib": peaks["oracle"],
        "checkpointing_to_oracle": peaks["product with checkpointing"] / peaks["oracle"],
    }


def sampling_overhead(clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Seconds per sampling step beyond the model's own forward pass, measured inside the same run."""
    model = random_model(64).eval().requires_grad_(False)
    inside: list[float] = []

    class Timed(torch.nn.Module):
        prepared = staticmethod(model.prepared)

        def forward(self, *arguments: Any) -> Tensor:
            began = clock()
            out: Tensor = model(*arguments)
            inside.append(clock() - began)
            return out

    began = clock()
    sample(
        Timed(),
        CosineProcess(),
        Sampler("predictor-corrector", SAMPLER_STEPS),
        volume_size=64,
        generators=[torch.Generator().manual_seed(0)],
    )
    whole = clock() - began
    how = "" if clock is time.perf_counter else ", CPU time of one thread"
    return {
        "what": f"sampling 64³{how}, {SAMPLER_STEPS} steps",
        "seconds_a_step": whole / SAMPLER_STEPS,
        "forward_s": sum(inside) / len(inside),
        "overhead_percent": 100.0 * (whole - sum(inside)) / sum(inside),
    }


def sampling_memory() -> dict[str, Any]:
    """Resident memory over a long sampling run of a small model."""
    process = psutil.Process()
    resident: dict[int, float] = {}
    sample(
        PRDiT(ModelConfig(32, 12, 8, 2, 48, 4, 1)).eval().requires_grad_(False),
        CosineProcess(),
        Sampler("predictor-corrector", FLAT_STEPS),
        volume_size=32,
        generators=[torch.Generator().manual_seed(0)],
        callback=lambda done, *_: resident.update({done: process.memory_info().rss / MIB}),
    )
    early = FLAT_STEPS // 20
    return {
        "what": f"resident memory, step {early} to {FLAT_STEPS}",
        "growth_mib": resident[FLAT_STEPS] - resident[early],
    }


def main() -> None:
    torch.set_num_threads(THREADS)
    if sys.argv[1:2] == ["peak"]:
        sys.stdout.write(f"{peak(sys.argv[2], int(sys.argv[3]))}\n")
        return
    rows = [row for size, repeats in SIZES.items() for row in compare_forward(size, repeats)]
    rows += [*compare_training(), *one_thread(), compare_peaks(), sampling_overhead(), sampling_memory()]
    square = [(1728, 1728)]
    with torch.no_grad():
        fp32, bf16 = rates(square, time.perf_counter)[0], in_bfloat16(lambda: rates(square, time.perf_counter)[0])()
    result = {
        "title": f"{PRESET}: speed and memory against the literal oracle",
        "rows": rows,
        "notes": [
            f"GFLOP/s of (512 × 1728)·(1728 × 1728): {fp32:.0f}, in bf16 {bf16:.0f}. "
            f"Load when it ended: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores."
        ],
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
