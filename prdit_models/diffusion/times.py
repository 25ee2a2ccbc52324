"""Random times of a training, uniform or favouring the middle of the schedule, and the range of discrete ones."""

import torch
from torch import Tensor


def check_steps(t: Tensor, num_steps: int) -> None:
    """Raise ValueError unless every step is an integer in [0, T)."""
    if t.is_floating_point():
        raise ValueError(f"t has dtype {t.dtype}; the process takes integer steps in [0, {num_steps}).")
    if t.numel() and (int(t.min()) < 0 or int(t.max()) >= num_steps):
        raise ValueError(f"t lies in [{int(t.min())}, {int(t.max())}]; expected steps in [0, {num_steps}).")


def draw_steps(
    num_steps: int, batch: int, generator: torch.Generator | None, distribution: str, mean: float, std: float
) -> Tensor:
    """Random integer steps in [0, T), shape (B,), on the generator's device.

    Args:
        num_steps: T.
        batch: B.
        generator: source of the numbers.
        distribution: `uniform`, or `logit-normal`.
        mean, std: of the logit.
    Raises: ValueError: for an unknown distribution or a std that is not positive.
    """
    if distribution == "uniform":
        device = generator.device if generator is not None else None
        return torch.randint(0, num_steps, (batch,), generator=generator, device=device)
    share = logit_normal(batch, generator, distribution, mean, std)
    return (share * num_steps).long().clamp(max=num_steps - 1)


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
