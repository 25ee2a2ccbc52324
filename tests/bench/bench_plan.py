"""Peak memory planned and measured: `python -m tests.bench.bench_plan`; every case runs in a process of its own.

Measured is the largest resident size above that of the same process after the same work on a network of a few tokens, which has
loaded all code and started all threads.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.diffusion.sampler import Sampler
from prdit_models.diffusion.sampling import sample
from prdit_models.ema import ema_update
from prdit_models.networks.build import Network, build_network
from prdit_models.networks.cascade import RefinedPRDiT, low_frequency_loss
from prdit_models.networks.config import CascadeConfig, ModelConfig, NetworkConfig, model_config
from prdit_models.networks.prdit import trainable_parameters
from prdit_models.plan import Work, memory_of, of_network

MIB = 2**20
TRAIN_STEPS = int(os.environ.get("PRDIT_BENCH_STEPS", "3"))
SAMPLE_STEPS = 4
WATCH_EVERY_S = 0.002
TINY = ModelConfig(16, 6, 4, 1, 48, 4, 1)
TINY_CASCADE = CascadeConfig(ModelConfig(32, 6, 4, 1, 48, 4, 0), TINY)
REPOSITORY = Path(__file__).resolve().parents[2]

# preset, size, batch, work; the allocator's share (ALLOCATOR_SHARES) was chosen on the first NUM_FITTED, the rest came after
NUM_FITTED = 18
CASES = [
    ("XS/12/4", 32, 1, Work("global", "train")),
    ("XS/12/4", 32, 8, Work("global", "train")),
    ("XS/12/4", 64, 4, Work("global", "train")),
    ("XS/12/4", 64, 4, Work("global", "train", checkpointing=True)),
    ("XS/12/4", 32, 4, Work("global", "train", precision="bf16")),
    ("XS/12/4", 32, 8, Work("local", "train")),
    ("XS/12/4", 64, 2, Work("local", "train")),
    ("XS/12/4", 64, 12, Work("local", "train")),
    ("B/12/4", 64, 1, Work("global", "train")),
    ("B/12/4", 64, 2, Work("global", "train")),
    ("B/12/4", 64, 2, Work("global", "train", checkpointing=True)),
    ("B/12/4", 128, 1, Work("global", "train")),
    ("B/12/4", 128, 1, Work("global", "train", checkpointing=True)),
    ("B/12/4", 64, 1, Work("global", "sample")),
    ("B/12/4", 128, 1, Work("global", "sample")),
    ("B/12/4", 64, 4, Work("global", "sample")),
    ("XS/12/4", 64, 1, Work("refiner", "train")),
    ("XS/12/4", 64, 1, Work("refiner", "sample")),
    ("S/12/4", 64, 2, Work("global", "train")),
    ("S/12/8", 64, 2, Work("global", "train", checkpointing=True)),
    ("S/12/4", 64, 2, Work("global", "train", precision="bf16", checkpointing=True)),
    ("B/12/0", 64, 2, Work("local", "train", precision="bf16")),
    ("S/12/4", 128, 1, Work("global", "sample")),
    ("S/16/2", 48, 3, Work("global", "train")),
]


def _resident(key: str = "VmRSS") -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


@contextmanager
def _watched(peak: list[int]) -> Iterator[None]:
    """Largest resident size inside the block, as the kernel counts it, or by looking often where it cannot be reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        yield
        peak.append(_resident("VmHWM"))
        return
    except PermissionError:
        ended = threading.Event()

    def look() -> None:
        while not ended.wait(WATCH_EVERY_S):
            peak[:] = [max([*peak, _resident()])]

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    yield
    ended.set()
    watcher.join()


def _train(network: Network, batch: int, precision: str) -> None:
    """Steps in the order of `tasks.train.loop`: the old gradients live until the new loss is there."""
    network.train()
    parameters = trainable_parameters(network)
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    process, generator = CosineProcess(), torch.Generator().manual_seed(0)
    for _ in range(TRAIN_STEPS):
        x0 = torch.rand(batch, 1, *(network.config.volume_size,) * 3, generator=generator) * 2 - 1
        t, eps = process.draw_times(batch, generator), process.noise(tuple(x0.shape), generator)
        x_t = process.q_sample(x0, t, eps)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            if isinstance(network, RefinedPRDiT):
                parts = network(x_t, t, parts=True)
                loss = process.losses((parts.upsampled + parts.head).float(), x0, eps)["loss"]
                loss = loss + low_frequency_loss(parts, 1).mean()
                del parts
            else:
                loss = process.losses(network(x_t, t).float(), x0, eps)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema_update(averages, parameters, 0.9)


def _sample(network: Network, batch: int) -> None:
    network.eval().requires_grad_(False)
    generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
    sampler = Sampler(num_steps=SAMPLE_STEPS)
    sample(network, CosineProcess(), sampler, volume_size=network.config.volume_size, generators=generators)


def _measure(preset: str, size: int, batch: int, work: Work) -> int:
    """Peak resident bytes of one case in this process, above its baseline."""
    config = _network(preset, size, work.name)
    _do(TINY_CASCADE if work.name == "refiner" else TINY, 1, work)
    gc.collect()
    baseline, peak = _resident(), list[int]()
    with _watched(peak):
        _do(config, batch, work)
    return peak[-1] - baseline


def _network(preset: str, size: int, name: str) -> NetworkConfig:
    """The network that a preset's training of a name trains; a refiner's works on the preset at half the size."""
    local = preset.rpartition("/")[0] + "/0"
    if name == "refiner":
        return CascadeConfig(model_config(local, size), model_config(preset, size // 2))
    return model_config(local if name == "local" else preset, size)


def _do(config: NetworkConfig, batch: int, work: Work) -> None:
    network = build_network(config, checkpointing=work.checkpointing)
    if work.what == "train":
        _train(network, batch, work.precision)
    else:
        _sample(network, batch)


def _row(number: int) -> dict[str, Any]:
    preset, size, batch, work = CASES[number]
    config = _network(preset, size, work.name)
    command = [sys.executable, "-m", "tests.bench.bench_plan", "--measure", str(number)]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, check=True)
    measured, planned = int(done.stdout.split()[-1]), memory_of(work, of_network(config), batch).total
    return {
        "preset": preset,
        "size": size,
        "batch": batch,
        "what": str(work),
        "share_chosen_on_it": "yes" if number < NUM_FITTED else "no",
        "planned_mib": round(planned / MIB),
        "measured_mib": round(measured / MIB),
        "planned_to_measured": round(planned / measured, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", type=int, help="number of the case to measure in this process")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the cases to run; default: all")
    options = parser.parse_args()
    if options.measure is not None:
        sys.stdout.write(f"{_measure(*CASES[options.measure])}\n")
        return
    rows = []
    for number in options.only or range(len(CASES)):
        rows.append(_row(number))
        sys.stderr.write(f"{number}: {rows[-1]}\n")
    largest = max(abs(row["planned_to_measured"] - 1) for row in rows)
    notes = [f"Largest deviation: {100 * largest:.0f} %."]
    sys.stdout.write(json.dumps({"title": "Plan against measured", "rows": rows, "notes": notes}) + "\n")


if __name__ == "__main__":
    main()
