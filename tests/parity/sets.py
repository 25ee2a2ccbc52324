"""Reading a parity set: manifest, arrays, and weights rebuilt from their recipe."""

import functools
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.prdit import PRDiT
from tests.parity.placement import placed

Entry = dict[str, Any]
_ONE_LIKE = re.compile(r"(^|\.)bn\d\.weight$|\.downsample\.1\.weight$")


@functools.cache
def load_manifest(folder: Path, name: str = "manifest.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def entries(folder: Path) -> dict[str, Entry]:
    return {entry["id"]: entry for entry in load_manifest(folder)["entries"]}


def arrays(folder: Path, entry: Entry) -> dict[str, np.ndarray]:
    """The entry's arrays, checked against the shapes and dtypes the manifest announces."""
    with np.load(folder / entry["file"]) as stored:
        found = {name: stored[name] for name in stored.files}
    for name, declared in entry.get("arrays", {}).items():
        assert list(found[name].shape) == declared["shape"], (entry["id"], name)
        assert str(found[name].dtype) == declared["dtype"], (entry["id"], name)
    return found


def tensor(array: np.ndarray) -> Tensor:
    return placed(torch.from_numpy(np.ascontiguousarray(array)))


def side_file(folder: Path, entry: Entry) -> Any:
    return json.loads((folder / entry["file"]).read_text())


_PIECE = 1 << 22  # numbers made at a time: the largest tensor holds 10^8


def uniform(seed_key: str, first: int, count: int) -> np.ndarray:
    """Counter-based numbers in [-1, 1): splitmix64 of a hashed key (manifest header, `weight_recipe`)."""
    start = np.uint64(int.from_bytes(hashlib.sha256(seed_key.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        z = start + np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0


def recipe_tensor(key: str, shape: tuple[int, ...], base_seed: str, gain: float) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    fan_in = math.prod(shape[1:])
    if key.endswith("running_var"):
        centre, spread = 1.0, 0.5
    elif key.endswith("running_mean"):
        centre, spread = 0.0, 0.1
    elif len(shape) == 1:
        centre = 1.0 if key.endswith("norm.weight") or _ONE_LIKE.search(key) else 0.0
        spread = 0.1
    else:
        centre = 0.0
        spread = (0.5 if "adaLN_modulation" in key else gain) * math.sqrt(3.0 / fan_in)
    count = math.prod(shape)
    values = np.empty(count, dtype=np.float32)
    for first in range(0, count, _PIECE):
        piece = min(_PIECE, count - first)
        values[first : first + piece] = centre + spread * uniform(f"{base_seed}:{key}", first, piece)
    return torch.from_numpy(values.reshape(shape))


@functools.lru_cache(maxsize=1)  # who compares an entry twice, in two precisions, makes its weights once
def _recipe_state(names: tuple[tuple[str, tuple[int, ...]], ...], base_seed: str, gain: float) -> dict[str, Tensor]:
    return {key: recipe_tensor(key, shape, base_seed, gain) for key, shape in names}


def state_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over sorted keys, each followed by its little-endian bytes (manifest header, `check`)."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights(folder: Path, entry: Entry, names: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The entry's state dict for a network with these keys and shapes, compared with `sha256_state`."""
    recipe = entry["weights"]
    if recipe["kind"] == "safetensors":
        state = load_file(folder / recipe["file"])
    elif recipe["kind"] == "recipe":
        state = dict(_recipe_state(tuple(names.items()), recipe["base_seed"], recipe["gain"]))
    else:
        raise AssertionError(f"{entry['id']}: unknown kind of weights {recipe['kind']!r}")
    assert state_digest(state) == recipe["sha256_state"], f"{entry['id']}: weights differ from the recorded ones"
    return state


def config_of(args: dict[str, Any]) -> ModelConfig:
    """The model configuration an entry's `args` describe."""
    channels = args.get("in_channels", 1)
    arithmetic = args.get("variant", "prdit")
    out_channels = 2 if args["learn_sigma"] else channels
    if args["model"] != "custom":
        return model_config(args["model"], args["input_size"], in_channels=channels, out_channels=out_channels)
    return ModelConfig(
        volume_size=args["input_size"],
        patch_size=args["patch_size"],
        stride=args["stride"],
        padding=args["padding"],
        hidden_size=args["hidden_size"],
        num_heads=args["num_heads"],
        depth=args["depth"],
        in_channels=channels,
        out_channels=out_channels,
        arithmetic=arithmetic,
    )


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def build(folder: Path, entry: Entry, attention: str = "auto") -> PRDiT:
    """The entry's network with its weights."""
    model = PRDiT(config_of(entry["args"]), attention=attention)
    model.load_state_dict(weights(folder, entry, shapes_of(model)))
    return placed(model.eval())
