"""The image-and-noise process: a quarter turn from the volume to noise, and the loss of a network that predicts both."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CosineProcess:
    """Forward process x_t = cos(β)·x0 + sin(β)·eps with β = πt/2T.

    Attributes:
        noise_std: standard deviation of eps in model units (published: 0.5; TF-PRDiT: 1). It belongs to the process: a
            checkpoint is usable only with the value it was trained with.
        num_steps: T.
    Source: SPEC §2.
    """

    noise_std: float = 0.5
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if not self.noise_std > 0 or not math.isfinite(self.noise_std):
            raise ValueError(f"noise_std is {self.noise_std}; expected a positive number (published: 0.5).")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; expected at least 1 (published: 1000).")

    def angle(self, t: Tensor) -> Tensor:
        """β of integer steps t, formed in float32 as published: (t / T)·(π / 2)."""
        return (t.to(torch.float32) / self.num_steps) * (math.pi / 2)

    def check_steps(self, t: Tensor) -> None:
        """Raise ValueError unless every step is an integer in [0, T)."""
        if t.is_floating_point():
            raise ValueError(f"t has dtype {t.dtype}; the process takes integer steps in [0, {self.num_steps}).")
        if t.numel() and (int(t.min()) < 0 or int(t.max()) >= self.num_steps):
            raise ValueError(f"t lies in [{int(t.min())}, {int(t.max())}]; expected steps in [0, {self.num_steps}).")

    def draw_steps(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform integer steps in [0, T), shape (B,), on the generator's device."""
        device = generator.device if generator is not None else None
        return torch.randint(0, self.num_steps, (batch,), generator=generator, device=device)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Gaussian noise of the process's std, float32, on the generator's device."""
        device = generator.device if generator is not None else None
        return torch.randn(shape, generator=generator, device=device).mul_(self.noise_std)

    def q_sample(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Noise a clean volume to step t: x_t = cos(β)·x0 + sin(β)·eps.

        Args:
            x0: clean volume in model range [-1, 1], shape (B, C, D, H, W).
            t: diffusion step in [0, T), integer, shape (B,).
            eps: noise with the process's std, same shape as x0.
        Returns: x_t, same shape.
        Raises: ValueError: if shapes differ or t is out of range.
        Source: PRDiT (ICLR 2026), forward process; SPEC §2.
        """
        if x0.shape != eps.shape or t.shape != x0.shape[:1]:
            raise ValueError(
                f"q_sample got x0 {tuple(x0.shape)}, eps {tuple(eps.shape)}, t {tuple(t.shape)}; expected equal shapes "
                "(B, C, D, H, W) and t (B,)."
            )
        self.check_steps(t)
        angle = self.angle(t).view(-1, *[1] * (x0.dim() - 1)).to(x0.device)
        return torch.cos(angle) * x0 + torch.sin(angle) * eps

    def sample_losses(self, model_output: Tensor, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared errors of the noise and of the image estimate, per volume.

        Args:
            model_output: (B, 2·C, D, H, W), noise channels first.
            x0: clean volume, (B, C, D, H, W).
            eps: noise with the process's std, same shape.
        Returns: (noise, image), each (B,).
        Raises: ValueError: if shapes do not fit.
        Source: SPEC §2.
        """
        expected = (x0.shape[0], 2 * x0.shape[1], *x0.shape[2:])
        if tuple(model_output.shape) != expected or eps.shape != x0.shape:
            raise ValueError(
                f"losses got an output {tuple(model_output.shape)}, x0 {tuple(x0.shape)}, eps {tuple(eps.shape)}; expected "
                f"an output {expected} (noise and image channels) and eps like x0. Was the model built with out_channels 2?"
            )
        eps_hat, x0_hat = model_output.chunk(2, dim=1)
        return (eps_hat - eps).square().flatten(1).mean(1), (x0_hat - x0).square().flatten(1).mean(1)

    def losses(self, model_output: Tensor, x0: Tensor, eps: Tensor) -> dict[str, Tensor]:
        """Batch means of `sample_losses`: 0-d `loss_noise`, `loss_image` and their sum `loss`."""
        noise, image = (part.mean() for part in self.sample_losses(model_output, x0, eps))
        return {"loss": noise + image, "loss_noise": noise, "loss_image": image}
