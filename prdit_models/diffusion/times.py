"""Random times of a training that favour the middle of the schedule."""

import torch
from torch import Tensor


def logit_normal(batch: int, generator: torch.Generator | None, distribution: str, mean: float, std: float) -> Tensor:
    """Shares of the schedule sigmoid(mean + std·N(0, 1)) in (0, 1), shape (B,), on the generator's device.

    Args:
        batch: B.
        generator: source of the numbers.
        distribution: its name, `logit-normal`.
        mean, std: of the logit.
    Raises: ValueError: for another distribution or a std that is not positive.
    Source: Stable Diffusion 3 (Esser et al. 2024).
    """
    if distribution != "logit-normal" or not std > 0:
        raise ValueError(
            f"distribution {distribution!r} with std {std}; expected 'uniform', or 'logit-normal' with std > 0."
        )
    device = generator.device if generator is not None else None
    return torch.sigmoid(mean + std * torch.randn((batch,), generator=generator, device=device))
