"""Which network published weights belong to: shapes tell its sizes, never its arithmetic."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prdit_models.config import HIDDEN_SIZES, NUM_HEADS, CascadeConfig, ModelConfig, NetworkConfig
from tasks.convert.foreign import ForeignCheckpoint

VARIANTS = ("prdit", "fm", "sr", "tf")
_HEADS = {HIDDEN_SIZES[size]: heads for size, heads in NUM_HEADS.items()}
_NAME = re.compile(r"^(PRDiT|DiT)(-(SR|FM))?-")
_LOCAL_PARTS = ("t_embedder.", "coarse.mlp_denoise.")
_SR_PARTS = ("t_embedder_sr.", "sr.mlp_denoise.")
_SIZE_KEYS = ("volume_size", "input_size", "image_size", "img_size", "resolution", "size")


@dataclass(frozen=True)
class Recognised:
    """A foreign checkpoint's network.

    Attributes:
        variant: one of `VARIANTS`.
        network: its shape.
        name: the model name stored in the file, or nothing.
    """

    variant: str
    network: NetworkConfig
    name: str


def recognise(
    foreign: ForeignCheckpoint, *, variant: str | None, volume_size: int | None, num_heads: int | None
) -> Recognised:
    """Work out the network of a foreign checkpoint.

    Args:
        foreign: the file's content.
        variant: what the user says; needed where the file does not tell.
        volume_size: edge in voxels; needed where the file's configuration does not tell.
        num_heads: attention heads; needed for widths that are not published.
    Raises: ValueError: something is not known or contradicts; the message names the option that settles it.
    """
    name = _stored_name(foreign)
    keys = foreign.ema
    shape = "sr" if any(key.startswith("base.") for key in keys) else ""
    local = _sizes(keys, *(_SR_PARTS if shape else _LOCAL_PARTS))
    found = _variant(variant, name, shape, local.out_channels)
    size = volume_size or next(
        (v for v in [foreign.find(*_SIZE_KEYS)] if isinstance(v, int) and not isinstance(v, bool)), None
    )
    if size is None:
        raise ValueError("The file does not tell the volume size its model works at; give --volume-size (such as 128).")
    stored_heads = foreign.find("num_heads")
    heads = num_heads or (stored_heads if isinstance(stored_heads, int) else None)
    if found != "sr":
        return Recognised(found, _model(keys, size, heads, "tf" if found == "tf" else "prdit"), name)
    base_keys = {key.removeprefix("base."): value for key, value in keys.items() if key.startswith("base.")}
    base = _model(base_keys, size // 2, heads, "prdit")
    return Recognised(found, CascadeConfig(_config(_sizes(keys, *_SR_PARTS), size), base), name)


def _stored_name(foreign: ForeignCheckpoint) -> str:
    names = [value for _, value in foreign.settings() if isinstance(value, str) and _NAME.match(value)]
    return names[0] if names else ""


def _variant(given: str | None, name: str, shape: str, out_channels: int) -> str:
    if given is not None and given not in VARIANTS:
        raise ValueError(f"Unknown variant {given!r}; expected one of {list(VARIANTS)}.")
    told = shape
    if not told and name:
        told = "tf" if name.startswith("DiT-") else "fm" if out_channels == 1 else "prdit"
    if not told and given is None:
        raise ValueError(
            "The file does not say which model it is, and the weights cannot tell: PRDiT and TF-PRDiT have the same keys and "
            "shapes but other arithmetic, and the wrong one gives wrong volumes without any error. Give --variant prdit, fm or tf."
        )
    if told and given is not None and given != told:
        source = f"model name {name!r}" if name and not shape else "keys"
        raise ValueError(f"--variant {given} contradicts the file, whose {source} say {told!r}. Leave --variant out.")
    chosen = told or str(given)
    if (chosen == "fm") != (out_channels == 1):
        raise ValueError(
            f"Variant {chosen!r} has {'one output channel' if chosen == 'fm' else 'two output channels'}; these weights have "
            f"{out_channels}."
        )
    return chosen


def _cube_root(number: int) -> int | None:
    root = round(number ** (1 / 3))
    return root if root**3 == number else None


@dataclass(frozen=True)
class _Sizes:
    """What the shapes of a local denoiser's weights tell."""

    hidden_size: int
    patch_size: int
    stride: int
    out_channels: int


def _sizes(keys: Mapping[str, Tensor], time: str, branch: str) -> _Sizes:
    needed = (f"{time}mlp.0.weight", f"{branch}linear_final.weight")
    if missing := [key for key in needed if key not in keys or keys[key].dim() != 2]:
        raise ValueError(
            f"These are not weights of a PRDiT: no matrix {missing}; the first keys are {sorted(keys)[:5]}."
        )
    width_out, width_in = keys[needed[1]].shape
    # a number and its double are never both cubes, so s³·O tells O
    channels = 1 if _cube_root(width_out) else 2
    patch, stride = _cube_root(width_in), _cube_root(width_out // channels)
    if patch is None or stride is None:
        raise ValueError(
            f"{needed[1]} has shape ({width_out}, {width_in}); expected (s³·O, p³) for whole patch edges s and p and one input "
            "channel."
        )
    return _Sizes(keys[needed[0]].shape[0], patch, stride, channels)


def _config(
    sizes: _Sizes, volume_size: int, num_heads: int = 1, depth: int = 0, arithmetic: str = "prdit"
) -> ModelConfig:
    padding = (sizes.patch_size - sizes.stride) // 2
    return ModelConfig(
        volume_size,
        sizes.patch_size,
        sizes.stride,
        padding,
        sizes.hidden_size,
        num_heads,
        depth,
        out_channels=sizes.out_channels,
        arithmetic=arithmetic,
    )


def _model(keys: Mapping[str, Tensor], volume_size: int, heads: int | None, arithmetic: str) -> ModelConfig:
    sizes = _sizes(keys, *_LOCAL_PARTS)
    depth = len({key.split(".")[2] for key in keys if key.startswith("fine.blocks.")})
    known = heads or _HEADS.get(sizes.hidden_size)
    if depth and known is None:
        raise ValueError(
            f"Width {sizes.hidden_size} is not a published one ({sorted(_HEADS)}), so the number of attention heads is unknown; "
            "give --num-heads."
        )
    return _config(sizes, volume_size, known or 1, depth, arithmetic)
