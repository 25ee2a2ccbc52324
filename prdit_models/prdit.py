"""PRDiT: a per-token denoiser plus a transformer that predicts its residual."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prdit_models.config import ModelConfig
from prdit_models.embeddings import TimeEmbedder
from prdit_models.initialization import initialize
from prdit_models.local import LocalBranch
from prdit_models.patches import extract_patches, unpatchify
from prdit_models.refiner import Refiner

LOCAL_PREFIXES = ("t_embedder.mlp.", "t_embedder.coarse_head.", "coarse.")
ENCODE_STEP = 50
ENCODE_BLOCK = 5


class PRDiT(nn.Module):
    """The network of both stages: depth 0 is the local denoiser, depth > 0 adds the refiner over a frozen local branch.

    Args:
        config: shape of the network.
        attention: backend, see `prdit_models.attention.BACKENDS`.
    Source: PRDiT (ICLR 2026); SPEC §1.
    """

    def __init__(self, config: ModelConfig, *, attention: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.t_embedder = TimeEmbedder(config.hidden_size, config.token_width, has_refiner=config.depth > 0)
        self.coarse = LocalBranch(config.token_width, config.output_width)
        self.fine = Refiner(config, attention) if config.depth > 0 else None
        initialize(self, gain=1.0)
        if config.depth > 0:
            self.freeze_local()

    def local_state_dict(self) -> dict[str, Tensor]:
        """The part of the state dict a depth-0 model has (tensors share memory with the model)."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(LOCAL_PREFIXES)}

    def freeze_local(self) -> None:
        """Take the local branch and the time layers it reads out of training (SPEC §1.7)."""
        for name, parameter in self.named_parameters():
            if name.startswith(LOCAL_PREFIXES):
                parameter.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor | int | float) -> Tensor:
        """Predict noise and image.

        Args:
            x: noisy volume, shape (B, C, S, S, S).
            t: diffusion step: a number, a 0-d tensor or shape (B,). One step for the whole batch is embedded once.
        Returns: shape (B, O, S, S, S); channel 0 is the noise estimate, channel 1 the image estimate.
        Raises: ValueError: if a shape does not fit the configuration.
        """
        coarse, fine = self._branches(x, t)
        return self._volume(coarse if fine is None else coarse + fine)

    def forward_with_intermediates(self, x: Tensor, t: Tensor | int | float) -> tuple[Tensor, Tensor | None]:
        """The two branches' volumes, each (B, O, S, S, S), whose sum `forward` returns; no fine one at depth 0."""
        coarse, fine = self._branches(x, t)
        return self._volume(coarse), None if fine is None else self._volume(fine)

    def encode(self, x: Tensor, t: Tensor | int | float = ENCODE_STEP, *, block: int = ENCODE_BLOCK) -> Tensor:
        """Hidden tokens (B, N, H) behind one transformer block, as features of a volume.

        Raises: ValueError: if the model has no such block.
        """
        if self.fine is None or not 0 <= block < self.config.depth:
            raise ValueError(
                f"encode reads block {block}, but the model has {self.config.depth}; choose another block."
            )
        tokens = self._tokens(x)
        _, condition = self._conditions(t, x)
        return self.fine.features(tokens, condition, num_blocks=block + 1)

    def _tokens(self, x: Tensor) -> Tensor:
        size, channels = self.config.volume_size, self.config.in_channels
        if x.dim() != 5 or tuple(x.shape[1:]) != (channels, size, size, size):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this model takes (B, {channels}, {size}, {size}, {size}). Build the model "
                "with the volume's size: its weights load at any size."
            )
        return extract_patches(x, self.config.patch_size, self.config.stride, self.config.padding)

    def _volume(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.config.out_channels, self.config.stride, self.config.volume_size)

    def _conditions(self, t: Tensor | int | float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Conditioning of the local branch (·, d) and of the refiner (·, H); · is B, or 1 for a common t."""
        steps = torch.as_tensor(t, device=x.device)
        if steps.dim() == 0:
            steps = steps[None]
        elif steps.shape != (x.shape[0],):
            raise ValueError(
                f"t has shape {tuple(steps.shape)}; expected a number or ({x.shape[0]},), one step a volume."
            )
        features = self.t_embedder(steps)
        fine_head: Callable[[Tensor], Tensor] = self.t_embedder.fine_head or (lambda shared: shared)
        return self.t_embedder.coarse_head(features), fine_head(features)

    def _branches(self, x: Tensor, t: Tensor | int | float) -> tuple[Tensor, Tensor | None]:
        tokens = self._tokens(x)
        coarse_condition, fine_condition = self._conditions(t, x)
        if self.fine is None:
            return self.coarse(tokens, coarse_condition), None
        with torch.no_grad():  # frozen in stage 2: no graph, no activations kept
            coarse = self.coarse(tokens, coarse_condition)
        return coarse, self.fine(tokens, fine_condition)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters an optimiser may change (all of a depth-0 model; the refiner and its time head otherwise)."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
