"""Networks and their parts against the recorded arrays."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prdit_models.networks.attention import Attention
from prdit_models.networks.build import build_network
from prdit_models.networks.cascade import RefinedPRDiT
from prdit_models.networks.config import CascadeConfig, ModelConfig, model_config, preset_names
from prdit_models.networks.embeddings import position_table, timestep_embedding
from prdit_models.networks.initialization import initialize
from prdit_models.networks.patches import extract_patches, unpatchify
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from tests.parity.measure import Measure, close, exact, relative
from tests.parity.placement import placed
from tests.parity.sets import Entry, arrays, build, config_of, shapes_of, side_file, tensor, weights
from tests.submodules import branches, hidden_tokens, outputs_of

PUBLISHED_STEP, PUBLISHED_BLOCK = 50, 5  # of the published `encode`


def _reshape_argument(text: str) -> tuple[int, ...]:
    """Shape in an argument such as `arange(...).reshape(2,2,16,16,16)`."""
    match = re.search(r"reshape\(([\d,\s]+)\)", text)
    assert match, f"no reshape in {text!r}"
    return tuple(int(number) for number in match.group(1).split(","))


def _counting(text: str) -> Tensor:
    shape = _reshape_argument(text)
    return torch.arange(int(np.prod(shape)), dtype=torch.int32).reshape(shape)


def check_patches(folder: Path, entry: Entry) -> list[Measure]:
    args, stored = entry["args"], arrays(folder, entry)
    volume = tensor(stored["volume"]) if "volume" in stored else placed(_counting(args["volume"]))
    if volume.device.type != "cpu" and not volume.is_floating_point():
        volume = volume.float()  # CUDA pads no integers; these numbers stay exact
    patch, stride, padding = args["patch_size"], args["stride"], args["padding"]
    found = extract_patches(volume, patch, stride, padding)
    if "patches" in stored:
        measures = [exact("patches", found, stored["patches"])]
    else:
        head, tail = stored["patches_head"], stored["patches_tail"]
        measures = [
            exact("first patches", found[:, : head.shape[1]], head),
            exact("last patches", found[:, -tail.shape[1] :], tail),
        ]
    if entry.get("centre_crop_roundtrip_exact") and volume.shape[1] == 1:
        low = (patch - stride) // 2
        cube = found.reshape(*found.shape[:2], patch, patch, patch)[..., *[slice(low, low + stride)] * 3]
        back = unpatchify(cube.reshape(*found.shape[:2], -1), 1, stride, volume.shape[-1])
        measures.append(exact("centre crop round trip", back, volume))
    return measures


def check_unpatchify(folder: Path, entry: Entry) -> list[Measure]:
    args = entry["args"]
    stored = arrays(folder, entry)
    tokens = tensor(stored["tokens"]) if "tokens" in stored else placed(_counting(args["tokens"]))
    volume = unpatchify(tokens, args["out_channels"], args["patch_size"], args["input_size"])
    return [exact("volume", volume, stored["volume"])]


def check_timestep_embedding(folder: Path, entry: Entry) -> list[Measure]:
    stored, args, atol = arrays(folder, entry), entry["args"], entry["tolerance"]["atol_same_float32_order"]
    width, period = args["dim"], args["max_period"]
    pairs = [("emb_int", "t_int", width), ("emb_float", "t_float", width)]
    pairs += [(name, "t_int", int(name[7:])) for name in stored if name.startswith("emb_dim")]
    return [
        close(name, timestep_embedding(tensor(stored[t]), columns, period), stored[name], atol)
        for name, t, columns in pairs
        if name in stored
    ]


def check_position_table(folder: Path, entry: Entry) -> list[Measure]:
    stored, atol = arrays(folder, entry), entry["tolerance"]["atol_same_float32_order"]
    measures = []
    for name in (name for name in stored if name.startswith("pe_")):
        label = name.removeprefix("pe_")
        grid, width = (int(number) for number in re.findall(r"\d+", label))
        table = position_table(grid, width)
        measures.append(close(name, table[tensor(stored[f"rows_{label}"]).long()], stored[name], atol))
        total = float(table.abs().sum(dtype=torch.float64))
        measures.append(relative(f"{label} sum", total, entry["full_table_sums"][label]["abs_sum"], 1e-6))
    return measures


def _tolerance(entry: Entry) -> tuple[float, float]:
    return entry["tolerance"]["suggested_atol"], entry["tolerance"]["suggested_rtol"]


@torch.no_grad()
def check_local(folder: Path, entry: Entry) -> list[Measure]:
    stored, model = arrays(folder, entry), build(folder, entry)
    branch = model.coarse.mlp_denoise
    parts = {
        "c_coarse": model.t_embedder.coarse_head,
        "modulation": branch.adaLN_modulation,
        "after_mlp1": branch.mlp1,
        "after_mlp2": branch.mlp2,
        "tokens_out": branch,
    }
    with outputs_of(parts) as found:
        y = model(tensor(stored["x"]), tensor(stored["t"]))
    found["y"] = y
    return [close(name, found[name], stored[name], *_tolerance(entry)) for name in [*parts, "y"] if name in stored]


@torch.no_grad()
def check_full(folder: Path, entry: Entry) -> list[Measure]:
    stored, model = arrays(folder, entry), build(folder, entry)
    assert model.fine is not None
    assert model.fine.pos_embed is not None
    x, t = tensor(stored["x"]), tensor(stored["t"])
    atol, rtol = _tolerance(entry)
    with outputs_of({"embedded": model.fine.patch_embedder, "block_0": model.fine.blocks[0]}) as found:
        coarse, fine = branches(model, x, t)
    assert fine is not None
    y = model(x, t)
    found["patch_embed_plus_pos"] = found.pop("embedded") + model.fine.pos_embed
    found["final_hidden"] = hidden_tokens(model, x, t, model.config.depth - 1)
    found.update(coarse=coarse, fine=fine, y=y)
    stored.setdefault("y", stored["coarse"] + stored["fine"])
    measures = [
        close(name, value[: stored[name].shape[0]], stored[name], atol, rtol)
        for name, value in found.items()
        if name in stored
    ]
    if "y_abs_mean" in entry:
        measures.append(close("mean of |y|", float(y.abs().mean()), entry["y_abs_mean"], atol, rtol))
    return measures + _flash(entry, stored, model, x, t)


def _flash(entry: Entry, stored: dict[str, np.ndarray], model: PRDiT, x: Tensor, t: Tensor) -> list[Measure]:
    """The published bfloat16 attention: nearer to the recorded flash output than that is to float32."""
    if "flash_max_abs_diff" not in entry:
        return []
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = "published-flash"
    atol = entry.get("flash_suggested_atol_vs_own_flash", 2.0 * entry["flash_max_abs_diff"])
    if "y_flash" in stored:
        return [close("y, published flash", model(x, t), stored["y_flash"], atol)]
    _, fine = branches(model, x, t)
    recorded = stored["fine"] + stored["fine_flash_minus_fine"].astype(np.float32)
    return [close("fine, published flash", fine, recorded, atol)]


@torch.no_grad()
def check_tf(folder: Path, entry: Entry) -> list[Measure]:
    stored, model = arrays(folder, entry), build(folder, entry)
    x, t = tensor(stored["x"]), tensor(stored["t"])
    coarse, fine = branches(model, x, t)
    found = {"y": model(x, t), "coarse": coarse, "fine": fine}
    measures = [close(name, found[name], stored[name], *_tolerance(entry)) for name in found if name in stored]
    wrong = PRDiT(dataclasses.replace(model.config, arithmetic="prdit"))
    wrong.load_state_dict(model.state_dict())
    differs = float((placed(wrong.eval())(x, t) - found["y"]).abs().max())
    recorded = entry["max_abs_diff_to_PRDiT_with_same_weights"]
    return [*measures, relative("difference to PRDiT's arithmetic", differs, recorded, 1e-4)]


@torch.no_grad()
def check_sr(folder: Path, entry: Entry) -> list[Measure]:
    stored, args = arrays(folder, entry), entry["args"]
    base = config_of(args["base"])
    head = ModelConfig(
        volume_size=args["target_size"],
        patch_size=args["sr_patch_size"],
        stride=args["sr_stride"],
        padding=args["sr_padding"],
        hidden_size=args["sr_hidden_size"],
        num_heads=1,
        depth=0,
        out_channels=base.out_channels,
    )
    model = build_network(CascadeConfig(head, base)).eval()
    assert isinstance(model, RefinedPRDiT)
    names = [[key, list(shape)] for key, shape in shapes_of(model).items()]
    recorded_names = json.loads((folder / entry["names_file"]).read_text())
    model.load_state_dict(weights(folder, entry, shapes_of(model)))
    model = placed(model)
    x, t = tensor(stored["x"]), tensor(stored["t"])
    parts = model.forward_parts(x, t)
    found = {"base_upsampled": parts.upsampled, "local": parts.head, "y": model(x, t)}
    return [
        exact("keys and shapes", sorted(names), sorted(recorded_names)),
        *(close(name, value, stored[name], *_tolerance(entry)) for name, value in found.items()),
    ]


@torch.no_grad()
def check_encode(folder: Path, entry: Entry) -> list[Measure]:
    stored, model = arrays(folder, entry), build(folder, entry)
    x = tensor(stored["x"])
    measures = [
        close("encode", hidden_tokens(model, x, PUBLISHED_STEP, PUBLISHED_BLOCK), stored["encode"], *_tolerance(entry))
    ]
    for name in (name for name in stored if name.startswith("block_")):
        measures.append(
            close(name, hidden_tokens(model, x, PUBLISHED_STEP, int(name[6:])), stored[name], *_tolerance(entry))
        )
    return measures


def check_state_dict_names(folder: Path, entry: Entry) -> list[Measure]:
    measures = [exact("registered names", sorted(f"PRDiT-{n}" for n in preset_names()), entry["registered_names"])]
    for label, recorded in side_file(folder, entry).items():
        name, size, out_channels = label.split("|")
        with torch.device("meta"):
            model = PRDiT(model_config(name, int(size), out_channels=int(out_channels.split("=")[1])))
        state = model.state_dict()
        rows = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()]
        hidden = sorted(set(dict(model.named_buffers())) - set(state))
        trainable = sum(parameter.numel() for parameter in trainable_parameters(model))
        prefixes = sorted({".".join(key.split(".")[:2]) for key, p in model.named_parameters() if p.requires_grad})
        measures += [
            exact(f"{label} keys, shapes, order", rows, recorded["state_dict"]),
            exact(f"{label} parameters", sum(p.numel() for p in model.parameters()), recorded["n_params"]),
            exact(f"{label} trainable", trainable, recorded["n_trainable_after_construction"]),
            exact(f"{label} trainable parts", prefixes, sorted(recorded["trainable_prefixes"])),
            exact(f"{label} buffers not stored", hidden, recorded["non_persistent_buffers"]),
        ]
    for name in entry["registered_but_unusable"]:
        try:
            model_config(name, 16)
        except ValueError:
            measures.append(Measure(f"{name} is refused", 0.0, 0.0))
        else:
            measures.append(Measure(f"{name} is refused", 1.0, 0.0))
    return measures


def check_init_stats(folder: Path, entry: Entry) -> list[Measure]:
    rtol = entry["tolerance"]["std_rtol"]
    measures = []
    for label, recorded in side_file(folder, entry).items():
        gain = float(label.split("=")[1])
        depth = 1 + max(int(m.group(1)) for key in recorded if (m := re.match(r"fine\.blocks\.(\d+)\.", key)))
        width, hidden = recorded["t_embedder.coarse_head.weight"]["shape"]
        patch = round(width ** (1 / 3))
        name = next(
            n for n in preset_names() if n.endswith(f"/{patch}/{depth}") and model_config(n, 16).hidden_size == hidden
        )
        model = PRDiT(model_config(name, 16))
        torch.manual_seed(20)
        initialize(model, gain)
        measures.append(exact(f"{label} shapes", shapes_of(model), {k: tuple(v["shape"]) for k, v in recorded.items()}))
        for key, value in model.state_dict().items():
            expected, std = recorded[key]["std"], float(value.std(correction=0))
            measures.append(
                close(f"{label} {key} constant", float(value.mean()), recorded[key]["min"], 0.0)
                if expected == 0.0
                else relative(f"{label} {key} std", std, expected, rtol)
            )
    return measures
