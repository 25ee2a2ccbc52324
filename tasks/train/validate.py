"""Validation on fixed volumes, times and noise: the same numbers for both stages, comparable step by step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prdit_models.diffusion.cosine import CosineProcess

# Spread over the schedule; stage 2 must beat stage 1 at each of them (what the refiner is for).
TIMES = (50, 200, 400, 600, 800, 950)
_NOISE_SEED = 20_260  # fixed, so that losses of different runs, stages and seeds compare


@dataclass(frozen=True)
class ValidationSet:
    """Clean volumes (V, 1, D, H, W) with the noise each is tested with.

    Attributes:
        volumes: model range, on the CPU.
        process: forward process whose losses are taken.
        times: diffusion steps.
        labels: integer label of each volume, for a labelled model.
    """

    volumes: torch.Tensor
    process: CosineProcess
    times: Sequence[int] = TIMES
    labels: torch.Tensor | None = None

    @torch.no_grad()
    def losses(self, model: torch.nn.Module, device: torch.device, batch_size: int) -> dict[int, float]:
        """Mean loss (noise + image) at every time, float64 mean over volumes."""
        was_training = model.training
        model.eval()
        result = {}
        for t in self.times:
            values = []
            for start in range(0, len(self.volumes), batch_size):
                x0 = self.volumes[start : start + batch_size]
                eps = torch.stack([self._noise(start + place, t, x0.shape[1:]) for place in range(len(x0))])
                x0, eps = x0.to(device), eps.to(device)
                times = torch.full((len(x0),), t, device=device)
                labels = () if self.labels is None else (self.labels[start : start + batch_size].to(device),)
                output = model(self.process.q_sample(x0, times, eps), times, *labels)
                losses = self.process.losses(output.float(), x0, eps, times)
                values.append(float(losses["loss"]) * len(x0))
            result[t] = sum(values) / len(self.volumes)
        model.train(was_training)
        return result

    def _noise(self, volume: int, t: int, shape: torch.Size) -> torch.Tensor:
        generator = torch.Generator().manual_seed(_NOISE_SEED + 1000 * volume + t)
        return self.process.noise(tuple(shape), generator)
