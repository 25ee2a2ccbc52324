"""Flow matching: a straight line from noise to the volume, and a network that predicts its velocity (PRDiT-FM)."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlowProcess:
    """x_t = (1-t)·eps + t·x0 for t in [0, 1], eps ~ N(0, 1), velocity x0 - eps.

    Time runs the other way than in `CosineProcess`: t = 0 is noise. The network is given `model_time(t)` = 1000·t.

    Attributes:
        noise_std: 1, by definition of the variant.
        num_steps: scale of the time the network sees.
        prediction: `velocity`.
    Source: SPEC §3.1.
    """

    noise_std: float = 1.0
    num_steps: int = 1000
    prediction: str = "velocity"

    def __post_init__(self) -> None:
        if (self.noise_std, self.num_steps, self.prediction) != (1.0, 1000, "velocity"):
            raise ValueError(
                f"Flow matching has noise_std 1, time scale 1000 and prediction 'velocity', got {self.noise_std}, "
                f"{self.num_steps}, {self.prediction!r}."
            )

    def model_time(self, t: Tensor) -> Tensor:
        """The time the network sees."""
        return t * float(self.num_steps)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Unit Gaussian noise, float32, on the generator's device."""
        return torch.randn(shape, generator=generator, device=None if generator is None else generator.device)

    def draw_times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform times in [0, 1), shape (B,)."""
        return torch.rand((batch,), generator=generator, device=None if generator is None else generator.device)

    def interpolate(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = (1-t)·eps + t·x0 for x0 and eps (B, C, D, H, W) and t (B,).

        Raises: ValueError: if shapes do not fit or a time lies outside [0, 1].
        """
        if x0.shape != eps.shape or t.shape != x0.shape[:1]:
            raise ValueError(
                f"interpolate got x0 {tuple(x0.shape)}, eps {tuple(eps.shape)}, t {tuple(t.shape)}; expected equal shapes "
                "(B, C, D, H, W) and t (B,)."
            )
        if t.numel() and not (float(t.min()) >= 0.0 and float(t.max()) <= 1.0):
            raise ValueError(f"t lies in [{float(t.min())}, {float(t.max())}]; expected times in [0, 1].")
        share = t.view(-1, *[1] * (x0.dim() - 1)).to(x0.device)
        return (1.0 - share) * eps + share * x0

    def sample_losses(self, velocity: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
        """Mean squared error of the velocity (B, C, D, H, W) for each volume, shape (B,)."""
        if velocity.shape != x0.shape:
            raise ValueError(
                f"The model returned {tuple(velocity.shape)} for volumes {tuple(x0.shape)}; flow matching needs one velocity "
                "a voxel. Was the model built with out_channels 1?"
            )
        return (velocity - (x0 - eps)).square().flatten(1).mean(1)

    def reconstruct(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The volume a velocity (B, C, D, H, W) points to from x_t at times t (B,): x_t + (1-t)·v."""
        return x_t + (1.0 - t.view(-1, *[1] * (x_t.dim() - 1))) * velocity

    def to_dict(self) -> dict[str, Any]:
        """The process as a checkpoint stores it."""
        return {"name": "flow", **asdict(self)}
