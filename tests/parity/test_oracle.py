"""The literal oracle in float64 against the recorded arrays: nearer to them than a quarter of their tolerance.

What is left is the published code's own float32 rounding; so the oracle can replace the arrays where they do not exist.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles import prdit_literal as literal
from tests.parity import sets
from tests.parity.location import is_parity_set, parity_folder
from tests.parity.sets import Entry, tensor

SHARE = 0.25  # of the recorded tolerance, which is 8 x the published code's distance from float64
MAX_PARAMETERS = 3e6  # in float64 on two cores
PATTERNS = (
    "local_",
    "full_",
    "encode_",
    "tf_full_",
    "tf_sampler_",
    "sampler_ddim_",
    "sampler_pc_",
    "fm_euler_",
    "fm_heun_",
)
OTHERS = ("sr_forward", "train_stage1", "train_stage2", "q_sample")

Numbers = dict[str, Any]
Found = dict[str, Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def _ids() -> list[str]:
    folder = parity_folder()
    if not is_parity_set(folder):
        return ["(no parity set)"]
    return [
        name
        for name, entry in sets.entries(folder).items()
        if name in OTHERS or (name.startswith(PATTERNS) and entry["weights"].get("n_params", 0) <= MAX_PARAMETERS)
    ]


def _numbers(args: Numbers) -> Numbers:
    return asdict(sets.config_of(args))


def _state(folder: Path, entry: Entry) -> Found:
    shapes = sets.shapes_of(sets.build(folder, entry))
    return {key: value.double() for key, value in sets.weights(folder, entry, shapes).items()}


def _variant(entry: Entry) -> str:
    return str(entry["args"].get("variant", "prdit"))


def _forward(folder: Path, entry: Entry, stored: dict[str, np.ndarray]) -> Found:
    x, t = tensor(stored["x"]).double(), tensor(stored["t"])
    coarse, fine = literal.branches(_state(folder, entry), _numbers(entry["args"]), x, t, _variant(entry))
    return {"y": coarse} if fine is None else {"y": coarse + fine, "coarse": coarse, "fine": fine}


def _encode(folder: Path, entry: Entry, stored: dict[str, np.ndarray]) -> Found:
    run = partial(literal.encode, _state(folder, entry), _numbers(entry["args"]), tensor(stored["x"]).double())
    blocks = [name for name in stored if name.startswith("block_")]
    return {"encode": run(), **{name: run(last=int(name[6:])) for name in blocks}}


def _sampler(folder: Path, entry: Entry, stored: dict[str, np.ndarray]) -> Found:
    args, state = entry["args"], _state(folder, entry)
    numbers, variant = _numbers(args), _variant(entry)
    noise = [tensor(draw).double() for draw in stored.get("noise", [])]
    x, x0 = literal.published_sampler(
        lambda x, t: literal.forward(state, numbers, x, t, variant),
        tensor(stored["z"]).double(),
        args["num_sampling_steps"],
        noise,
        args["new_sampling"],
    )
    return {"xs": x, "x0": x0}


def _flow(folder: Path, entry: Entry, stored: dict[str, np.ndarray]) -> Found:
    state, args = _state(folder, entry), entry["args"]
    run = literal.from_config(_numbers(args))
    z = tensor(stored["z"]).double()
    return {"x": literal.flow_sampler(lambda x, t: run(state, x, t), z, args["num_steps"], args["solver"] == "heun")}


def _q_sample(_: Path, __: Entry, stored: dict[str, np.ndarray]) -> Found:
    return {"x_t": literal.q_sample(tensor(stored["x0"]).double(), tensor(stored["t"]), tensor(stored["eps"]).double())}


def _sr(folder: Path, entry: Entry, stored: dict[str, np.ndarray]) -> Found:
    args = entry["args"]
    names = {key: tuple(shape) for key, shape in json.loads((folder / entry["names_file"]).read_text())}
    state = {key: value.double() for key, value in sets.weights(folder, entry, names).items()}
    base = _numbers(args["base"])
    head = {
        "volume_size": args["target_size"],
        "patch_size": args["sr_patch_size"],
        "stride": args["sr_stride"],
        "padding": args["sr_padding"],
        "out_channels": base["out_channels"],
    }
    return {"y": literal.forward_sr(state, head, base, tensor(stored["x"]).double(), tensor(stored["t"]))}


def _train(folder: Path, entry: Entry, stored: dict[str, np.ndarray]) -> Found:
    """Gradients of the first batch, and how far its step moves the weights."""
    args, state = entry["args"], _state(folder, entry)
    numbers = _numbers(args)
    parts = ("",) if numbers["depth"] == 0 else ("fine.", "t_embedder.fine_head.")
    for key, value in state.items():
        value.requires_grad_(key.startswith(parts))
    x0, eps, t = (tensor(stored[name][0]) for name in ("x0", "eps", "t"))
    x0, eps = x0.double(), eps.double()
    x_t = literal.q_sample(x0, t, eps)

    def output(weights: Any) -> Tensor:
        return literal.forward(weights, numbers, x_t, t)

    trained = {key: value for key, value in state.items() if value.requires_grad}
    loss = literal.losses(output(state), x0, eps)
    gradients = torch.autograd.grad(loss, list(trained.values()))
    _, moved, _ = literal.train_step(state, output, x0, eps, args["lr"], args["ema_decay"])
    found = {f"grad/{key}": value for key, value in zip(trained, gradients, strict=True)}
    return found | {f"delta1/{key}": moved[key] - state[key].detach() for key in trained}


CHECKS: dict[str, Callable[[Path, Entry, dict[str, np.ndarray]], Found]] = {
    "local_": _forward,
    "full_": _forward,
    "tf_full_": _forward,
    "encode_": _encode,
    "tf_sampler_": _sampler,
    "sampler_": _sampler,
    "fm_": _flow,
    "q_sample": _q_sample,
    "sr_forward": _sr,
    "train_": _train,
}


def _allowed(entry: Entry, name: str, recorded: np.ndarray) -> np.ndarray | float:
    tolerance = entry["tolerance"]
    if name.startswith("delta"):
        return float(tolerance["delta_atol"])
    if name.startswith("grad/"):
        return float(tolerance["grad_suggested_rel_l2"] * np.linalg.norm(recorded))
    if name in ("xs", "x0") and "xs_last" in tolerance:
        tolerance = tolerance["xs_last" if name == "xs" else "x0"]
    return tolerance["suggested_atol"] + tolerance["suggested_rtol"] * np.abs(recorded)


@pytest.mark.parametrize("entry_id", _ids())
def test_oracle(parity_dir: Path, entry_id: str) -> None:
    entry = sets.entries(parity_dir)[entry_id]
    stored = sets.arrays(parity_dir, entry)
    check = next(check for prefix, check in CHECKS.items() if entry_id.startswith(prefix))
    with torch.set_grad_enabled(check is _train):
        found = check(parity_dir, entry, stored)
    compared = 0
    for name, value in found.items():
        if name not in stored:
            continue
        recorded = stored[name][-1] if name == "xs" else stored[name]
        error = np.abs(value.detach().numpy() - recorded.astype(np.float64))
        if name.startswith("grad/"):
            error = np.linalg.norm(error)
        ratio = float(np.max(error / _allowed(entry, name, recorded)))
        assert ratio <= SHARE, f"{entry_id} {name}: {ratio:.2f} of the recorded tolerance"
        compared += 1
    assert compared, f"{entry_id}: nothing was compared"


def test_the_oracle_covers_every_kind_of_model_entry(parity_dir: Path) -> None:
    covered = _ids()
    for prefix in (*PATTERNS, *OTHERS):
        assert any(name.startswith(prefix) for name in covered), prefix
