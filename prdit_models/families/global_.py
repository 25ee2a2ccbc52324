"""The global residual transformer (stage 2): attention over all patches, on top of a frozen local denoiser."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from prdit_models.families.denoiser import Denoiser, DenoiserSettings
from prdit_models.families.family import Description, Given
from prdit_models.families.local import with_depth
from prdit_models.networks.config import ModelConfig, model_config
from prdit_models.networks.initialization import start_global

_CONTINUED = ("patch_size", "stride", "padding", "hidden_size")


@dataclass(frozen=True)
class GlobalSettings(DenoiserSettings):
    """Settings of a global transformer. View, intensity, process and norms are those of the local denoiser below.

    Attributes:
        preset: `size/patch/depth` with the local denoiser's size and patch and a depth above 0.
        joint_local: train the local branch too, instead of freezing it.
        qk_norm: RMS norm of queries and keys (ViT-22B, Dehghani et al. 2023).
        position: `table` (published), or `rotary`: rotary embedding in mm (RoFormer, Su et al. 2021); size L needs it.
    """

    preset: str = "XS/12/4"
    joint_local: bool = False
    qk_norm: bool = False
    position: Literal["table", "rotary"] = "table"


class Global(Denoiser):
    """Predicts the residual of the local denoiser."""

    title = "global transformer"
    settings = GlobalSettings
    offers = "denoiser"
    needs = "local denoiser"
    guided = True

    def describe(self, settings: GlobalSettings, given: Given) -> Description:
        """Norms and channels are the local denoiser's, the rest its own."""
        below = ModelConfig.from_dict(given.start or {})
        options = inherited(below)
        if not settings.preset.partition("-")[0].endswith(
            "/0"
        ):  # at depth 0 the message below is clearer than that of these options
            options |= {"qk_norm": settings.qk_norm, "num_classes": given.num_classes, "num_values": given.num_values}
            options |= {"mask_channels": given.mask_channels, "mask_cell": given.mask_cell}
        if settings.position == "rotary":
            if given.several_grids:
                raise ValueError(
                    "position 'rotary' with view.more_edges: its angles are in mm of one grid, and the view has several. Use "
                    "position 'table', or leave view.more_edges out."
                )
            options |= {"position": "rotary", "voxel_mm": given.voxel_mm}
        shape = model_config(settings.preset, below.volume_size, **options)
        if not shape.depth:
            raise ValueError(
                f"preset {settings.preset!r} has depth 0; a global transformer needs blocks ({with_depth(settings.preset, 4)!r})."
            )
        pairs = {name: (getattr(below, name), getattr(shape, name)) for name in _CONTINUED}
        if differing := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
            raise ValueError(
                f"preset {settings.preset!r} does not continue the local denoiser (its own, this one): {differing}. It must have "
                "the size letter and patch of the local denoiser."
            )
        return shape.to_dict()

    def begin(self, module: Any, settings: GlobalSettings, start: Mapping[str, Tensor] | None) -> None:
        """Gain 0.1, then the local weights (SPEC §1.8)."""
        start_global(module, start or {})

    def freeze(self, module: Any, settings: GlobalSettings) -> None:
        """The local branch, unless it is trained too."""
        module.freeze_local(not settings.joint_local)

    def fits(self, description: Mapping[str, Any]) -> bool:
        """Whether a network's shape is one of this family."""
        return bool(description.get("depth"))


def inherited(below: ModelConfig) -> dict[str, Any]:
    """What a network inherits from the one it is added to: channels and norms."""
    return {name: getattr(below, name) for name in ("in_channels", "out_channels", "arithmetic", "norm")}


FAMILY = Global()
