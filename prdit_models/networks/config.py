"""What defines one network: `ModelConfig`, the published presets by name, and `CascadeConfig` for stage 3."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self

HIDDEN_SIZES = {"XS": 192, "S": 384, "B": 768, "L": 1024, "XL": 1152}
NUM_HEADS = {"XS": 6, "S": 6, "B": 12, "L": 16, "XL": 16}
PATCH_SIZES = (10, 12, 14, 16)
DEPTHS = (0, 1, 2, 3, 4, 8, 10, 12)
PRESET_STRIDE = 8
TILINGS = {
    8: "-s8",
    16: "-s16",
}  # by patch: the suffix of patches side by side; 16: PRDiT-FM at 256³ (SPEC §3.4), 8: ours
CHOICES = {"arithmetic": ("prdit", "tf"), "norm": ("layer", "rms"), "position": ("table", "rotary")}
_LATER = ("num_values", "mask_channels", "mask_cell")  # fields that descriptions had not at first; 0: not used
_MIN_HEAD_WIDTH_ROTARY = 6  # one sine-cosine pair per axis


@dataclass(frozen=True)
class ModelConfig:
    """Shape of one PRDiT.

    Attributes:
        volume_size: cubic volume edge S in voxels, divisible by `stride`.
        patch_size: edge p in voxels of the overlapping input patches.
        stride: edge s in voxels of the output patches, which tile the volume.
        padding: reflect padding k in voxels on every face, (p - s) / 2.
        hidden_size: width H of the transformer and of the time embedding.
        num_heads: attention heads.
        depth: transformer blocks; 0 is the local denoiser alone (stage 1).
        in_channels: channels C of the noisy volume.
        out_channels: 2 for noise and image estimates, 1 for a single estimate (flow matching, x0-prediction).
        arithmetic: `prdit`, or `tf` for TF-PRDiT: the same keys and shapes, other norms (SPEC §3.2). Never interchangeable.
        norm: before modulations, `layer` (published) or `rms` (Zhang & Sennrich 2019, without parameters, eps 1e-5).
        position: `table` (published, additive, SPEC §1.6) or `rotary`: rotary embedding of the token centres in mm (RoFormer, Su
            et al. 2021, by axis), which knows the voxel size and needs no divisibility of the width.
        voxel_mm: voxel distance of the model's volume, for `rotary`.
        qk_norm: RMS norm with learned scale on queries and keys of every head (ViT-22B, Dehghani et al. 2023).
        num_classes: integer labels the refiner is conditioned on; 0 is none. Index num_classes means "no label".
        num_values: encoded numbers and categories the refiner is conditioned on; 0 is none. Zeros mean "nothing known".
        mask_channels: channels of a coarse mask that the refiner is shown; 0 is none. A mask of zeros means "none given".
        mask_cell: edge of a cell of that mask in voxels; 0 without one.

    Raises: ValueError: at construction, for any combination the network cannot be built from.
    Source: SPEC §1.
    """

    network: ClassVar[str] = "prdit_models.networks.prdit:PRDiT"  # what is built of it, see `build_network`

    volume_size: int
    patch_size: int
    stride: int
    padding: int
    hidden_size: int
    num_heads: int
    depth: int
    in_channels: int = 1
    out_channels: int = 2
    arithmetic: str = "prdit"
    norm: str = "layer"
    position: str = "table"
    voxel_mm: float | None = None
    qk_norm: bool = False
    num_classes: int = 0
    num_values: int = 0
    mask_channels: int = 0
    mask_cell: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type is int:
                value = getattr(self, field.name)
                if isinstance(value, bool) or not isinstance(value, int):
                    raise ValueError(f"{field.name} is {value!r}; expected an integer.")
                lowest = 0 if field.name in ("padding", "depth", "num_classes", *_LATER) else 1
                if value < lowest:
                    raise ValueError(f"{field.name} is {value}; expected at least {lowest}.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {list(allowed)}.")
        self._check_patches()
        self._check_widths()
        self._check_options()

    def _check_patches(self) -> None:
        size, patch, stride, padding = self.volume_size, self.patch_size, self.stride, self.padding
        if size % stride:
            lower, upper = size // stride * stride, -(-size // stride) * stride
            near = f"{lower} or {upper}" if lower else f"{upper}"
            raise ValueError(
                f"Impossible preset/size pair: volume_size {size} is not divisible by stride {stride}, so the output "
                f"patches cannot tile it. Use {near}."
            )
        if patch < stride or (patch - stride) % 2:
            raise ValueError(
                f"patch_size {patch} with stride {stride}: patch_size - stride must be even and >= 0, so that every "
                f"output patch is the centre of its input patch. Use patch_size {stride + 2 * ((patch - stride) // 2 + 1)}."
            )
        if 2 * padding != patch - stride:
            grid = (size + 2 * padding - patch) // stride + 1
            raise ValueError(
                f"padding {padding} with patch_size {patch} and stride {stride} gives {grid} windows per axis where the "
                f"position table has {size // stride}. Use padding {(patch - stride) // 2}."
            )
        if padding >= size:
            raise ValueError(
                f"Impossible preset/size pair: padding {padding} reflects more than volume_size {size} holds; it must "
                f"be smaller than the volume. Use a volume_size of at least {stride * (padding // stride + 1)}."
            )

    def _check_widths(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}: heads share the width "
                "equally. Change one of them."
            )
        if self.depth and self.hidden_size % 6 and self.position == "table":
            raise ValueError(
                f"hidden_size {self.hidden_size} with depth {self.depth}: the position table needs a sine and a cosine "
                "for each of three axes, so hidden_size must be divisible by 6. Published size L (1024) cannot have a "
                'transformer; use B (768) or XL (1152), or depth 0, or position="rotary" (recipe.global.settings.position).'
            )

    def _check_options(self) -> None:
        if self.arithmetic == "tf" and self.norm != "layer":
            raise ValueError('norm is "rms" with arithmetic "tf", which fixes its norms itself. Leave norm at "layer".')
        if self.position == "rotary":
            if self.voxel_mm is None or not math.isfinite(self.voxel_mm) or self.voxel_mm <= 0:
                raise ValueError(
                    f"voxel_mm is {self.voxel_mm} with position 'rotary'; expected the volume's voxel distance in mm, above 0."
                )
            if self.hidden_size // self.num_heads < _MIN_HEAD_WIDTH_ROTARY:
                raise ValueError(
                    f"heads are {self.hidden_size // self.num_heads} wide; position 'rotary' needs "
                    f"{_MIN_HEAD_WIDTH_ROTARY} or more (a pair per axis). Use fewer heads."
                )
        elif self.voxel_mm is not None:
            raise ValueError(
                f"voxel_mm is {self.voxel_mm} with position 'table', which does not read it; leave it out."
            )
        if self.depth == 0 and (self.num_classes or self.num_values or self.qk_norm or self.mask_channels):
            raise ValueError(
                f"num_classes {self.num_classes}, num_values {self.num_values}, mask_channels {self.mask_channels}, qk_norm "
                f"{self.qk_norm} with depth 0: they belong to the refiner. Use depth > 0."
            )
        if bool(self.mask_channels) != bool(self.mask_cell):
            raise ValueError(
                f"mask_channels is {self.mask_channels} and mask_cell {self.mask_cell}: a mask needs both, none has neither."
            )
        cell, stride = self.mask_cell, self.stride
        if cell and (self.volume_size % cell or (stride % cell and cell % stride)):
            raise ValueError(
                f"A mask of cells of {cell} voxels does not fit volumes of {self.volume_size} voxels in patches of {stride}: cells "
                f"must fill both, or be filled by patches. Choose a power of 2, such as {min(stride, 2)} or {stride} voxels."
            )

    @property
    def chain(self) -> "tuple[ModelConfig, ...]":
        """The networks whose outputs are added, the finest first: this one alone."""
        return (self,)

    @property
    def grid_size(self) -> int:
        """Tokens along one axis, G = S / s."""
        return self.volume_size // self.stride

    @property
    def num_tokens(self) -> int:
        """Tokens of one volume, N = G³."""
        return self.grid_size**3

    @property
    def token_width(self) -> int:
        """Raw token width, d = C·p³."""
        return self.in_channels * self.patch_size**3

    @property
    def mask_width(self) -> int:
        """Values of the coarse mask for one token: the cells in its output patch, or the one that it lies in."""
        cells = max(1, self.stride // self.mask_cell) if self.mask_cell else 0
        return self.mask_channels * cells**3

    @property
    def output_width(self) -> int:
        """Values predicted for one token, s³·O."""
        return self.out_channels * self.stride**3

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary; without the conditions that the model does not take, as before there were any."""
        return {name: value for name, value in asdict(self).items() if value or name not in _LATER}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_dict()` output.

        Raises: ValueError: for unknown or missing keys, or values that do not fit together.
        """
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        unknown, missing = sorted(set(values) - known), sorted(required - set(values))
        if unknown or missing:
            raise ValueError(
                f"Model configuration has unknown keys {unknown} and lacks {missing}; it takes {sorted(known)}."
            )
        return cls(**values)


def preset_names() -> tuple[str, ...]:
    """Every published preset name, usable or not (SPEC §1)."""
    regular = [f"{size}/{patch}/{depth}" for size in HIDDEN_SIZES for patch in PATCH_SIZES for depth in DEPTHS]
    return ("XS/4/0", "XS/4/1", *regular)


def tiling_preset_names() -> tuple[str, ...]:
    """Preset names of patches side by side, without overlap; B/16/0-s16 and B/16/12-s16 are published (SPEC §3.4).

    Patches of 8 leave as many tokens as the overlapping ones of 10 to 16 have, so that nothing but the overlap is gone.
    """
    return tuple(
        f"{size}/{patch}/{depth}{suffix}"
        for size in HIDDEN_SIZES
        for patch, suffix in TILINGS.items()
        for depth in DEPTHS
    )


def model_config(preset: str, volume_size: int, **options: Any) -> ModelConfig:
    """The configuration a preset name stands for, at one volume size.

    Args:
        preset: `size/patch/depth`, such as "XS/12/4", or with patches side by side "XS/8/4-s8", "XS/16/4-s16"; a leading "PRDiT-"
            is allowed.
        volume_size: cubic volume edge in voxels.
        options: further fields of `ModelConfig`, such as out_channels=1 or position="rotary", voxel_mm=2.0.
    Raises: ValueError: for an unknown preset or an impossible preset/size pair.
    Source: SPEC §1, §3.4.
    """
    name = preset.removeprefix("PRDiT-")
    if name not in (*preset_names(), *tiling_preset_names()):
        raise ValueError(
            f"Unknown preset {preset!r}; expected size/patch/depth with size in {list(HIDDEN_SIZES)}, patch in "
            f"{list(PATCH_SIZES)}, depth in {list(DEPTHS)} (such as 'XS/12/4'; without overlap "
            "'XS/8/4-s8', 'XS/16/4-s16'), or 'XS/4/0'."
        )
    size, patch, depth = name.partition("-")[0].split("/")
    patch_size = int(patch)
    stride, padding = PRESET_STRIDE, (patch_size - PRESET_STRIDE) // 2
    if name in tiling_preset_names():
        stride, padding = patch_size, 0
    if patch_size == 4:  # the two published exceptions: no overlap at depth 0, no padding at depth 1
        stride, padding = (4, 0) if depth == "0" else (2, 0)
    try:
        return ModelConfig(
            volume_size=volume_size,
            patch_size=patch_size,
            stride=stride,
            padding=padding,
            hidden_size=HIDDEN_SIZES[size],
            num_heads=NUM_HEADS[size],
            depth=int(depth),
            **options,
        )
    except ValueError as error:
        raise ValueError(f"Preset {preset!r} at volume_size {volume_size}: {error}") from error


@dataclass(frozen=True)
class CascadeConfig:
    """Shape of a stage-3 model: a network at one volume size, refined by a local denoiser at twice that size.

    Attributes:
        head: the local denoiser (depth 0) at the target size.
        base: the network below, itself a cascade where refinements are chained.

    Raises: ValueError: at construction, if head and base do not fit together.
    Source: SPEC §3.3.
    """

    network: ClassVar[str] = "prdit_models.networks.cascade:RefinedPRDiT"

    head: ModelConfig
    base: "NetworkConfig"

    def __post_init__(self) -> None:
        head, base = self.head, self.base
        if head.depth:
            raise ValueError(f"The refining head has depth {head.depth}; stage 3 adds a local denoiser, depth 0.")
        if head.volume_size != 2 * base.volume_size:
            raise ValueError(
                f"The head works at {head.volume_size}³ on a base at {base.volume_size}³; stage 3 goes one pyramid level up, to "
                f"{2 * base.volume_size}³. Chain refinements for more."
            )
        if (head.in_channels, head.out_channels) != (base.in_channels, base.out_channels):
            raise ValueError(
                f"The head has {head.in_channels} channels in and {head.out_channels} out, its base {base.in_channels} and "
                f"{base.out_channels}; their outputs are added, so both must agree."
            )

    @property
    def chain(self) -> tuple[ModelConfig, ...]:
        """The networks whose outputs are added, the finest first."""
        return (self.head, *self.base.chain)

    @property
    def volume_size(self) -> int:
        """Edge of the refined volume in voxels."""
        return self.head.volume_size

    @property
    def in_channels(self) -> int:
        """Channels C of the noisy volume."""
        return self.head.in_channels

    @property
    def out_channels(self) -> int:
        """Channels O of the prediction."""
        return self.head.out_channels

    def to_dict(self) -> dict[str, Any]:
        """Nested fields as a JSON-ready dictionary."""
        return {"head": self.head.to_dict(), "base": self.base.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_dict()` output.

        Raises: ValueError: for unknown or missing keys, or values that do not fit together.
        """
        if set(values) != {"head", "base"}:
            raise ValueError(f"Cascade configuration has keys {sorted(values)}; it takes head and base.")
        return cls(ModelConfig.from_dict(values["head"]), network_config(values["base"]))


NetworkConfig = ModelConfig | CascadeConfig


def network_config(values: Mapping[str, Any]) -> NetworkConfig:
    """The configuration a checkpoint stores: of one network, or of a cascade.

    Raises: ValueError: for unknown or missing keys, or values that do not fit together.
    """
    return CascadeConfig.from_dict(values) if "head" in values else ModelConfig.from_dict(values)
