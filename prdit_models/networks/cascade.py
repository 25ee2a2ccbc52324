"""Stage 3: a frozen model one pyramid level below, refined by a local denoiser at the full size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.networks.build import build_network
from prdit_models.networks.config import CascadeConfig
from prdit_models.networks.embeddings import TimeEmbedder
from prdit_models.networks.local import LocalBranch
from prdit_models.networks.patches import extract_patches, unpatchify
from prdit_models.networks.prdit import PRDiT, Time, prepared_width
from prdit_models.networks.weights import load_weights


class CascadeParts(NamedTuple):
    """What a refined prediction is made of.

    Attributes:
        base: the base network's own prediction, shape (B, O, S/2, S/2, S/2).
        upsampled: the same at the full size, (B, O, S, S, S).
        head: what the refining head adds, (B, O, S, S, S).
    """

    base: Tensor
    upsampled: Tensor
    head: Tensor


def low_frequency_loss(parts: CascadeParts, in_channels: int) -> Tensor:
    """How far the refined image, pooled by 2, is from the image of the base network: mean squared error per volume, shape (B,).

    The base's image is the target and gets no gradient: the term keeps the refinement from changing the low frequencies.

    Args:
        parts: of one refined prediction.
        in_channels: C; the last C channels are the image.
    Source: PRDiT (ICLR 2026), low-frequency consistency; SPEC §9.
    """
    refined = (parts.upsampled + parts.head)[:, -in_channels:]
    target = parts.base[:, -in_channels:].detach()
    return (F.avg_pool3d(refined, 2) - target).square().flatten(1).mean(1)


class RefinedPRDiT(nn.Module):
    """A network at edge S/2 inside a network at edge S (SPEC §3.3).

    The base sees the even-indexed voxels of the noisy volume (whose noise has the same variance). Its image estimate
    is upsampled trilinearly, its noise estimate by repetition; a complete local denoiser on the patches of the full volume adds
    the remainder.

    Args:
        config: of head and base.
        attention: of the base, see `PRDiT`.
        checkpointing: of head and base, see `PRDiT`.
    Source: PRDiT's super-resolution branch; SPEC §3.3.
    """

    def __init__(self, config: CascadeConfig, *, attention: str = "auto", checkpointing: bool = False) -> None:
        super().__init__()
        head = config.head
        self.config = config
        self.base: PRDiT | RefinedPRDiT = build_network(config.base, attention=attention, checkpointing=checkpointing)
        self.t_embedder_sr = TimeEmbedder(head.hidden_size, head.token_width, has_refiner=False)
        self.sr = LocalBranch(head, checkpointing=checkpointing)
        for name, parameter in self.sr.named_parameters():
            if "linear_final" in name or "adaLN_modulation" in name:  # all else keeps PyTorch's default initialisation
                nn.init.zeros_(parameter)
        self._prepared: dict[float, Tensor] = {}
        self.freeze_base()

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        """Load all weights of the model below.

        Raises: ValueError: keys are missing, extra or misshapen, or values not finite; all are listed, nothing is changed.
        """
        remedy = "They must be those of the checkpoint the cascade's base was described by."
        load_weights(self.base, weights, remedy)

    def freeze_base(self, frozen: bool = True) -> None:
        """Freeze the base, or unfreeze it (joint fine-tuning): all of its parameters."""
        self.base.requires_grad_(not frozen)

    def forward(self, x: Tensor, t: Time, *, parts: bool = False) -> Tensor | CascadeParts:
        """Predict noise and image at the full size.

        Args:
            x: noisy volume, shape (B, C, S, S, S).
            t: diffusion step: a number, a 0-d tensor or shape (B,).
            parts: return `forward_parts` instead of their sum, for callers that go through the module itself (compiled code).
        Returns: shape (B, O, S, S, S), channels as the base's.
        Raises: ValueError: if a shape does not fit the configuration.
        """
        found = self.forward_parts(x, t)
        return found if parts else found.upsampled + found.head

    def forward_parts(self, x: Tensor, t: Time) -> CascadeParts:
        """The parts whose sum `forward` returns; the base's without gradient unless it, or the volume, is differentiated."""
        head = self.config.head
        expected = (head.in_channels, *(head.volume_size,) * 3)
        if x.dim() != 5 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this cascade refines to (B, {', '.join(map(str, expected))})."
            )
        follows = x.requires_grad or next(self.base.parameters()).requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and follows):
            base = self.base(x[..., ::2, ::2, ::2].contiguous(), t)
            upsampled = self._upsample(base)
        tokens = extract_patches(x, head.patch_size, head.stride, head.padding)
        added = self.sr(tokens, self._modulation(t, x))
        return CascadeParts(base, upsampled, unpatchify(added, head.out_channels, head.stride, head.volume_size))

    @property
    def prepared_width(self) -> int:
        """See `PRDiT.prepared_width`; of head and base."""
        return prepared_width(self)

    @contextmanager
    def prepared(self, times: Tensor) -> Iterator[None]:
        """See `PRDiT.prepared`; prepares the base too."""
        with self.base.prepared(times):
            if times.numel():
                with torch.no_grad():
                    device = next(self.parameters()).device
                    together = self.sr.modulation(self.t_embedder_sr.coarse_head(self.t_embedder_sr(times.to(device))))
                self._prepared.update({time: together[i : i + 1] for i, time in enumerate(times.tolist())})
            try:
                yield
            finally:
                self._prepared.clear()

    def _modulation(self, t: Time, x: Tensor) -> Tensor:
        steps = torch.as_tensor(t, device=x.device)
        if steps.dim() == 0:
            if self._prepared and (known := self._prepared.get(float(steps))) is not None:
                return known
            steps = steps[None]
        return self.sr.modulation(self.t_embedder_sr.coarse_head(self.t_embedder_sr(steps)))

    def _upsample(self, base: Tensor) -> Tensor:
        """Image channels trilinearly, noise channels by repetition; a single estimate counts as image."""
        num_noise = base.shape[1] - self.config.in_channels
        image = F.interpolate(base[:, num_noise:], scale_factor=2, mode="trilinear", align_corners=False)
        if not num_noise:
            return image
        noise = F.interpolate(base[:, :num_noise], scale_factor=2, mode="nearest")
        return torch.cat([noise, image], dim=1)
