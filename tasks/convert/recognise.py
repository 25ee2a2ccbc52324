"""Which network published weights belong to: shapes determine its sizes, not its arithmetic."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prdit_models.networks.config import (
    HIDDEN_SIZES,
    NUM_HEADS,
    CascadeConfig,
    ModelConfig,
    NetworkConfig,
    model_config,
    preset_names,
    tiling_preset_names,
)
from storage.errors import InputError, as_input_error
from tasks.convert.foreign import ForeignCheckpoint

VARIANTS = ("prdit", "fm", "sr", "tf")
_HEADS = {HIDDEN_SIZES[size]: heads for size, heads in NUM_HEADS.items()}
# a registered size/patch/depth or an export's "custom", so that a run's name is not taken for a model's
_NAME = re.compile(r"^(PRDiT|DiT)-(?:(SR|FM)-)?((?:XS|S|B|L|XL)/\d+/\d+(?:-s\d+)?|custom)$")
_LOCAL_PARTS = ("t_embedder.", "coarse.mlp_denoise.")
_SR_PARTS = ("t_embedder_sr.", "sr.mlp_denoise.")
_SIZE_KEYS = ("volume_size", "input_size", "image_size", "img_size", "resolution")
_SR_SIZE_KEYS = ("target_size",)
_MAX_VOLUME_SIZE = 1024  # the position table grows with its cube
logger = logging.getLogger("prdit.convert")


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
        variant: given by the user; needed where the file does not state it.
        volume_size: edge in voxels; needed where the file's configuration does not state it.
        num_heads: attention heads; needed for widths that are not published.
    Raises: InputError: something is unknown or contradictory; the message names the option that resolves it.
    """
    keys = foreign.ema
    is_cascade = any(key.startswith("base.") for key in keys)
    local = _sizes(keys, *(_SR_PARTS if is_cascade else _LOCAL_PARTS))
    names = _stored_names(foreign)
    found = _variant(variant, names, is_cascade, local.out_channels)
    size = _volume_size(foreign, volume_size, _SR_SIZE_KEYS if is_cascade else _SIZE_KEYS)
    own = {key.removeprefix("base."): value for key, value in keys.items() if key.startswith("base.")}
    if is_cascade and size % 2:
        raise InputError(f"--volume-size {size} is odd; a refinement's volume is twice its base's.")
    base = _model(
        own if is_cascade else keys,
        size // 2 if is_cascade else size,
        foreign.numbers("num_heads"),
        num_heads,
        names,
        "tf" if found == "tf" else "prdit",
    )
    with as_input_error():
        network = CascadeConfig(_config(local, size), base) if is_cascade else base
    return Recognised(found, network, names[0] if names else "")


def _stored_names(foreign: ForeignCheckpoint) -> list[str]:
    """Different model names in the configuration, in its order."""
    return list(dict.fromkeys(v for _, v in foreign.settings() if isinstance(v, str) and _NAME.match(v)))


def _variant_of_name(name: str, out_channels: int) -> str:
    match = _NAME.match(name)
    family, mark = (match.group(1), match.group(2)) if match else ("", None)
    if family == "DiT":
        return "tf"
    if mark == "SR":
        return "sr"
    return "fm" if mark == "FM" or out_channels == 1 else "prdit"  # noise and image need two channels


def _variant(given: str | None, names: list[str], is_cascade: bool, out_channels: int) -> str:
    if given is not None and given not in VARIANTS:
        raise InputError(f"Unknown variant {given!r}; expected one of {list(VARIANTS)}.")
    stated = sorted({_variant_of_name(name, out_channels) for name in names})
    if is_cascade:  # a refinement's configuration may also name its base
        stated = sorted({"sr", *stated} - {"prdit"})
    elif given == "sr" or "sr" in stated:
        raise InputError(
            f"Variant 'sr' ({'--variant' if given == 'sr' else f'model name {names}'}) needs weights of a base model under "
            "'base.'; the file has none. Give the refinement's own file, or --variant prdit for a base alone."
        )
    if len(stated) > 1:
        keys = ", its keys a refinement ('base.')" if is_cascade else ""
        raise InputError(
            f"The file contradicts itself: its model names are {names}{keys}, which mean {stated}. Remove the wrong name from "
            "its configuration."
        )
    if not stated and given is None:
        raise InputError(
            "The file does not state which model it is, and weights do not show it: PRDiT and TF-PRDiT have the same keys and "
            "shapes but other arithmetic, and the wrong one gives wrong volumes without any error. Give --variant prdit, fm or tf."
        )
    if stated and given not in (None, *stated):
        source = "keys ('base.')" if is_cascade else f"model name {names[0]!r} with {out_channels} output channel(s)"
        raise InputError(
            f"--variant {given} contradicts the file, whose {source} means {stated[0]!r}. Leave --variant out."
        )
    chosen = stated[0] if stated else str(given)
    if (chosen == "fm") != (out_channels == 1):
        raise InputError(
            f"Variant {chosen!r} has {'one output channel' if chosen == 'fm' else 'two output channels'}; these weights have "
            f"{out_channels}. {'Give --variant fm.' if out_channels == 1 else 'Give --variant prdit or tf.'}"
        )
    return chosen


def _volume_size(foreign: ForeignCheckpoint, given: int | None, keys: tuple[str, ...]) -> int:
    stored = foreign.numbers(*keys)
    if given is None and len(stored) != 1:
        what = f"names several volume sizes, {stored}" if stored else "does not state the volume size of its model"
        raise InputError(f"The file {what}; give --volume-size (such as 128).")
    size = stored[0] if given is None else given
    if not 1 <= size <= _MAX_VOLUME_SIZE:
        raise InputError(f"Volume size {size}: expected 1 to {_MAX_VOLUME_SIZE}. Give --volume-size (such as 128).")
    if stored and size not in stored:
        logger.warning(
            "trained at volume size %s, imported for %d: its position table was trained for the former", stored, size
        )
    return size


def _cube_root(number: int) -> int | None:
    root = round(number ** (1 / 3))
    return root if root and root**3 == number else None


@dataclass(frozen=True)
class _Sizes:
    """Sizes that follow from the shapes of a local denoiser's weights."""

    hidden_size: int
    patch_size: int
    stride: int
    out_channels: int


def _sizes(keys: Mapping[str, Tensor], time: str, branch: str) -> _Sizes:
    needed = (f"{time}mlp.0.weight", f"{branch}linear_final.weight")
    if missing := [key for key in needed if key not in keys or keys[key].dim() != 2]:
        raise InputError(
            f"These are not weights of a PRDiT: no matrix {missing}; the keys are {sorted(keys)[:5]} and so on. Give a checkpoint "
            "of the published code."
        )
    width_out, width_in = keys[needed[1]].shape
    # a number and its double are never both cubes, so s³·O determines O
    channels = 1 if _cube_root(width_out) else 2
    patch, stride = _cube_root(width_in), _cube_root(width_out // channels)
    if patch is None or stride is None or width_out != channels * stride**3:
        raise InputError(
            f"{needed[1]} has shape ({width_out}, {width_in}); expected (s³·O, p³) for whole patch edges s and p and one input "
            "channel. Only such models can be imported."
        )
    return _Sizes(keys[needed[0]].shape[0], patch, stride, channels)


@as_input_error()
def _config(
    sizes: _Sizes, volume_size: int, num_heads: int = 1, depth: int = 0, arithmetic: str = "prdit"
) -> ModelConfig:
    return ModelConfig(
        volume_size,
        sizes.patch_size,
        sizes.stride,
        max(sizes.patch_size - sizes.stride, 0) // 2,
        sizes.hidden_size,
        num_heads,
        depth,
        out_channels=sizes.out_channels,
        arithmetic=arithmetic,
    )


def _model(
    keys: Mapping[str, Tensor],
    volume_size: int,
    stored_heads: list[int],
    given_heads: int | None,
    names: list[str],
    arithmetic: str,
) -> ModelConfig:
    """A PRDiT of these weights, which must agree with its stored name."""
    sizes = _sizes(keys, *_LOCAL_PARTS)
    depth = len({key.split(".")[2] for key in keys if key.startswith("fine.blocks.")})
    options = {"out_channels": sizes.out_channels, "arithmetic": arithmetic}
    presets = {name: name[match.start(3) :] for name in names if (match := _NAME.match(name))}
    with as_input_error():
        named = {
            name: model_config(p, volume_size, **options)
            for name, p in presets.items()
            if p in (*preset_names(), *tiling_preset_names())
        }
    heads = {*stored_heads, *([given_heads] if given_heads else []), *(c.num_heads for c in named.values())}
    if len(heads) > 1 and depth:
        raise InputError(
            f"The number of attention heads is contradictory: the file's configuration has {stored_heads}, --num-heads is "
            f"{given_heads}, its name(s) {names} stand for {[c.num_heads for c in named.values()]}. The weights have one true "
            "number; leave --num-heads out."
        )
    known = min(heads) if heads else _HEADS.get(sizes.hidden_size)
    if depth and known is None:
        raise InputError(
            f"Width {sizes.hidden_size} is not a published one ({sorted(_HEADS)}), so the number of attention heads is unknown; "
            "give --num-heads."
        )
    found = _config(sizes, volume_size, known or 1, depth, arithmetic)
    for name, config in named.items():
        if config != found:
            differing = [k for k, v in config.to_dict().items() if v != found.to_dict()[k]]
            raise InputError(
                f"The file's model name {name!r} and its weights contradict each other in "
                f"{', '.join(f'{k} ({config.to_dict()[k]} by name, {found.to_dict()[k]} by shape)' for k in differing)}. "
                "Nothing was imported."
            )
    return found
