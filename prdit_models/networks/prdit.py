"""PRDiT: a per-token denoiser plus a transformer that predicts its residual."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prdit_models.conditions import Conditions
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.embeddings import TimeEmbedder
from prdit_models.networks.initialization import initialize
from prdit_models.networks.local import LocalBranch
from prdit_models.networks.patches import extract_patches, unpatchify
from prdit_models.networks.refiner import Refiner

LOCAL_PREFIXES = ("t_embedder.mlp.", "t_embedder.coarse_head.", "coarse.")

Time = Tensor | int | float


class Modulations(NamedTuple):
    """Everything the network takes from the diffusion step: of the local branch, and of each block and the read-out."""

    local: Tensor
    refiner: tuple[Tensor, ...]


class PRDiT(nn.Module):
    """The network of both stages: depth 0 is the local denoiser, depth > 0 adds the refiner over a frozen local branch.

    Args:
        config: shape of the network.
        attention: backend, see `prdit_models.networks.attention.BACKENDS`.
        checkpointing: recompute each block in the backward pass: about a third more time, a fraction of the memory.
    Source: PRDiT (ICLR 2026); SPEC §1. The options of `config` name their own sources.
    """

    def __init__(self, config: ModelConfig, *, attention: str = "auto", checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.t_embedder = TimeEmbedder(config.hidden_size, config.token_width, has_refiner=config.depth > 0)
        self.coarse = LocalBranch(config, checkpointing=checkpointing)
        self.fine = Refiner(config, attention, checkpointing) if config.depth > 0 else None
        self.label_embedder = nn.Embedding(config.num_classes + 1, config.hidden_size) if config.num_classes else None
        self.value_embedder = value_embedder(config) if config.num_values else None
        self._prepared: dict[float, Modulations] = {}
        initialize(self, gain=1.0)
        if config.depth > 0:
            self.freeze_local()

    def local_state_dict(self) -> dict[str, Tensor]:
        """The part of the state dict a depth-0 model has (tensors share memory with the model)."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(LOCAL_PREFIXES)}

    def freeze_local(self, frozen: bool = True) -> None:
        """Freeze the local branch and the time layers it uses (SPEC §1.7), or unfreeze them (joint training)."""
        for name, parameter in self.named_parameters():
            if name.startswith(LOCAL_PREFIXES):
                parameter.requires_grad_(not frozen)

    def forward(self, x: Tensor, t: Time, conditions: Conditions | None = None) -> Tensor:
        """Predict noise and image.

        Args:
            x: noisy volume, shape (B, C, S, S, S).
            t: diffusion step: a number, a 0-d tensor or shape (B,). One step for the whole batch is embedded once.
            conditions: what is known of the volumes; parts that are None, as all of it, mean that nothing is. Only parts that the
                model was built for.
        Returns: shape (B, O, S, S, S); channel 0 is the noise estimate, channel 1 the image estimate.
        Raises: ValueError: if a shape does not fit the configuration.
        """
        tokens, modulations = self.tokens(x), self.modulations(t, x, conditions)
        # frozen in stage 2: no graph, no activations kept, unless the volume itself is differentiated (guided sampling)
        follows = self.fine is None or x.requires_grad or self._trains_local()
        with torch.set_grad_enabled(torch.is_grad_enabled() and follows):
            out = self.coarse(tokens, modulations.local)
        if self.fine is not None:
            out = out + self.fine(tokens, modulations.refiner, self._mask(conditions, x))
        return unpatchify(out, self.config.out_channels, self.config.stride, self.config.volume_size)

    @property
    def prepared_width(self) -> int:
        """Values that `prepared` keeps for each time."""
        return prepared_width(self)

    @contextmanager
    def prepared(self, times: Tensor) -> Iterator[None]:
        """Inside, `forward` at one of these scalar times uses modulations computed once for the schedule, unless labels or values
        are given.

        Modulations depend on time alone but take a tenth of the network's weights; a schedule of n steps computes
        them as one product.

        Args:
            times: shape (n,), the times of a schedule.
        """
        if times.numel():
            device = next(self.parameters()).device
            with torch.no_grad():
                together = self._modulations(times.to(device), Conditions())
            for index, time in enumerate(times.tolist()):
                rows = slice(index, index + 1)
                self._prepared[time] = Modulations(together.local[rows], tuple(m[rows] for m in together.refiner))
        try:
            yield
        finally:
            self._prepared.clear()

    def tokens(self, x: Tensor) -> Tensor:
        """Overlapping raw tokens (B, N, d) of a volume (B, C, S, S, S).

        Raises: ValueError: if the shape does not fit the configuration.
        """
        size, channels = self.config.volume_size, self.config.in_channels
        if x.dim() != 5 or tuple(x.shape[1:]) != (channels, size, size, size):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this model takes (B, {channels}, {size}, {size}, {size}). Build the model "
                "with the volume's size: its weights load at any size."
            )
        return extract_patches(x, self.config.patch_size, self.config.stride, self.config.padding)

    def modulations(self, t: Time, x: Tensor, conditions: Conditions | None = None) -> Modulations:
        """Modulations of all layers for the steps t of a batch x; of one row where t is common to the batch.

        Raises: ValueError: if t or conditions do not fit the batch.
        """
        steps = torch.as_tensor(t, device=x.device)
        if steps.dim() == 0:
            plain = conditions is None or (conditions.labels is None and conditions.values is None)
            if plain and self._prepared and (ready := self._prepared.get(float(steps))) is not None:
                return ready
            steps = steps[None]
        elif steps.shape != (x.shape[0],):
            raise ValueError(
                f"t has shape {tuple(steps.shape)}; expected a number or ({x.shape[0]},), one step per volume."
            )
        known = conditions or Conditions()
        if known.labels is not None:
            self._check_labels(known.labels, x.shape[0])
        if known.values is not None:
            self._check_values(known.values, x.shape[0])
        return self._modulations(steps, known)

    def _modulations(self, steps: Tensor, known: Conditions) -> Modulations:
        features = self.t_embedder(steps)
        trains_local = self._trains_local()
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.fine is None or trains_local)):
            local = self.coarse.modulation(self.t_embedder.coarse_head(features))
        if self.fine is None:
            return Modulations(local, ())
        fine_head: Callable[[Tensor], Tensor] = self.t_embedder.fine_head or (lambda shared: shared)
        condition = fine_head(features)
        if self.label_embedder is not None:
            none = torch.full((1,), self.config.num_classes, device=steps.device)
            condition = condition + self.label_embedder(none if known.labels is None else known.labels.to(steps.device))
        if self.value_embedder is not None:
            nothing = torch.zeros((1, self.config.num_values), device=steps.device)
            condition = condition + self.value_embedder(
                nothing if known.values is None else known.values.to(steps.device)
            )
        return Modulations(local, self.fine.modulations(condition))

    def _check_labels(self, labels: Tensor, batch: int) -> None:
        classes = self.config.num_classes
        if self.label_embedder is None:
            raise ValueError("labels were given, but the model has num_classes 0; leave them out.")
        if labels.shape != (batch,) or labels.is_floating_point():
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, {labels.dtype}; expected integers ({batch},), one per volume."
            )
        if int(labels.min()) < 0 or int(labels.max()) > classes:
            raise ValueError(
                f"labels lie in [{int(labels.min())}, {int(labels.max())}]; expected 0 to {classes - 1}, or {classes} for none."
            )

    def _check_values(self, values: Tensor, batch: int) -> None:
        if self.value_embedder is None:
            raise ValueError("values were given, but the model has num_values 0; leave them out.")
        if values.shape != (batch, self.config.num_values) or not values.is_floating_point():
            raise ValueError(
                f"values have shape {tuple(values.shape)}, {values.dtype}; expected floats ({batch}, {self.config.num_values}), "
                "one row per volume."
            )

    def _mask(self, conditions: Conditions | None, x: Tensor) -> Tensor | None:
        """The coarse mask of a batch x, if one is given."""
        mask = None if conditions is None else conditions.mask
        if mask is None:
            return None
        config = self.config
        if not config.mask_channels:
            raise ValueError("a mask was given, but the model has mask_channels 0; leave it out.")
        expected = (x.shape[0], config.mask_channels, *(config.volume_size // config.mask_cell,) * 3)
        if tuple(mask.shape) != expected or not mask.is_floating_point():
            raise ValueError(f"the mask has shape {tuple(mask.shape)}, {mask.dtype}; expected floats {expected}.")
        return mask.to(x.device)

    def _trains_local(self) -> bool:
        return self.coarse.mlp_denoise.linear_final.weight.requires_grad


def value_embedder(config: ModelConfig) -> nn.Sequential:
    """What makes of encoded numbers and categories (B, K) a vector of the refiner's width; 0 at first (`initialize`)."""
    width = config.hidden_size
    return nn.Sequential(nn.Linear(config.num_values, width), nn.SiLU(), nn.Linear(width, width))


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters an optimiser may change (all of a depth-0 model; the refiner and its time head otherwise)."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def prepared_width(module: nn.Module) -> int:
    """Outputs of all modulations of a network."""
    named = (part for name, part in module.named_modules() if name.endswith("adaLN_modulation.1"))
    return sum(int(part.out_features) for part in named)
