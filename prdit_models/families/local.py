"""The local denoiser (stage 1): a time-conditioned MLP on overlapping patches, each patch on its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from prdit_models.diffusion.process import Process
from prdit_models.families.denoiser import Denoiser, DenoiserSettings
from prdit_models.families.family import Description, Given, Request, refuse_conditioning
from prdit_models.networks.config import model_config


@dataclass(frozen=True)
class LocalSettings(DenoiserSettings):
    """Settings of a local denoiser.

    Attributes:
        preset: `size/patch/0`.
        arithmetic: `prdit`, or `tf` for TF-PRDiT's norms: same weights, other results (SPEC §3.2).
        norm: before modulations: `layer` (published), or `rms` (RMSNorm, Zhang & Sennrich 2019).
    """

    preset: str = "XS/12/0"
    arithmetic: Literal["prdit", "tf"] = "prdit"
    norm: Literal["layer", "rms"] = "layer"


class Local(Denoiser):
    """Trained from scratch; what it learns is low frequencies, from which no sampler makes an anatomy."""

    title = "local denoiser"
    settings = LocalSettings
    offers = "local denoiser"
    needs = ""

    def describe(self, settings: LocalSettings, given: Given) -> Description:
        """Shape of the network, as `ModelConfig` stores it."""
        outputs = 1 if given.process is None else given.process.outputs
        options = {"arithmetic": settings.arithmetic, "norm": settings.norm, "out_channels": outputs}
        shape = model_config(settings.preset, given.size, **options)
        if shape.depth:
            raise ValueError(
                f"preset {settings.preset!r} has depth {shape.depth}; a local denoiser has depth 0 "
                f"({with_depth(settings.preset, 0)!r})."
            )
        refuse_conditioning("a local denoiser", given, "Set it in the training above.")
        return shape.to_dict()

    def begin(self, module: nn.Module, settings: LocalSettings, start: Mapping[str, Tensor] | None) -> None:
        """Nothing: the network initialises itself as published (SPEC §1.8)."""

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """Always refuses. Raises: ValueError."""
        raise ValueError(
            "Sampling needs a model of the whole volume, got a local denoiser (stage 1): patches denoised on their own do not "
            "form an anatomy. Train a global transformer on it (published recipe: `prdit train global`), then sample that."
        )

    def fits(self, description: Mapping[str, Any]) -> bool:
        """Whether a network's shape is one of this family."""
        return description.get("depth") == 0


def with_depth(preset: str, depth: int) -> str:
    """The preset of another depth."""
    size, patch, rest = preset.split("/")
    return "/".join((size, patch, str(depth) + rest[len(rest.partition("-")[0]) :]))


class LocalAlone(Local):
    """The local denoiser without a transformer above it, to be measured: the paper's ablation "no global DiT" (SPEC §9)."""

    title = "local denoiser by itself"
    offers = ""
    guided = True
    deviations = ("No transformer: patches are denoised on their own (the paper's ablation without the global DiT).",)

    def check(self, description: Mapping[str, Any], process: Process | None, request: Request) -> None:
        """As every denoiser's."""
        Denoiser.check(self, description, process, request)

    def fits(self, description: Mapping[str, Any]) -> bool:
        """Never: an imported network of this shape is a stage 1."""
        return False


FAMILY = Local()
ALONE = LocalAlone()
