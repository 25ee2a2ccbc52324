"""A WGAN-GP critic: estimates the Wasserstein-1 distance of two sets of volumes, on volumes that it was not trained on."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from prdit_models.metrics.threads import one_thread

PATCH = 4  # edge of the blocks of voxels that the first layer sees
_SLOPE = 0.2  # of leaky ReLU for negative values
_WIDEST = 8  # channels of a layer at most, in those of the first
_BETAS = (0.0, 0.9)  # of Adam, as published
_MEASURED_TOGETHER = 8  # volumes
_TRACE = 20  # parts of a training whose mean is kept
_SMALL = 32  # edge up to which a second CPU thread costs more than it gains

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Effort:
    """How a critic is trained.

    Attributes:
        steps: of its optimiser.
        batch_size: volumes of each side per step.
        width: channels of the first layer; doubled with each merging of 2³ blocks, up to eight times.
        lr: learning rate of Adam at the first step; it falls linearly to 0.
        penalty: weight λ of the gradient penalty. Published: 10, for the Euclidean distance; here distances are root mean squares,
            so that the critic's values are smaller.
    """

    steps: int
    batch_size: int
    width: int
    lr: float
    penalty: float


@dataclass(frozen=True)
class Volumes:
    """The volumes of a side, read by their indices.

    Attributes:
        count: number of volumes.
        edge: in voxels, a multiple of `PATCH`.
        read: volumes of some indices, float32 with values in about [-1, 1], shape (B, S, S, S).
    """

    count: int
    edge: int
    read: Callable[[Places], Tensor]


@dataclass(frozen=True)
class Estimate:
    """What one critic has found.

    Attributes:
        distance: of volumes it was not trained on, in the volumes' unit.
        variances: of the critic's values of single real and generated volumes that it was not trained on; None for a single one.
        gradient_norm: mean norm of its gradient between these, by which its values were divided; near 1 for a trained critic.
        trace: distance of the batches it was trained on, not divided; means of up to twenty equal parts of the training.
    """

    distance: float
    variances: tuple[float | None, float | None]
    gradient_norm: float
    trace: list[float]


class Critic(nn.Module):
    """Linear layers on blocks: 4³ voxels, then 2³ blocks of the layer before, while the grid's edge is even and above 4; a mean.

    Blocks instead of overlapping convolutions because the second derivatives that the penalty needs are then matrix products: 4
    times as fast on a CPU. No norm layer: statistics of a batch would void the penalty, which is one of each volume.

    Args:
        edge: of the volumes, a multiple of `PATCH`.
        width: channels of the first layer.
    Source: Gulrajani et al. 2017 (leaky ReLU, no batch norm).
    """

    def __init__(self, edge: int, width: int) -> None:
        super().__init__()
        grid, channels = edge // PATCH, width
        layers = [nn.Linear(PATCH**3, width)]
        while grid % 2 == 0 and grid > PATCH:
            wider = min(2 * channels, _WIDEST * width)
            layers.append(nn.Linear(8 * channels, wider))
            grid, channels = grid // 2, wider
        self.blocks = nn.ModuleList(layers)
        self.head = nn.Linear(channels, 1)
        for layer in (*layers, self.head):
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """One value per volume of (B, S, S, S), shape (B,)."""
        h = x.unsqueeze(-1)
        for number, layer in enumerate(self.blocks):
            h = F.leaky_relu(layer(_merged(h, 2 if number else PATCH)), _SLOPE)
        values: Tensor = self.head(h).mean(dim=(1, 2, 3, 4))
        return values

    def scale_to(self, x: Tensor) -> None:
        """Divide the initial weights so that the mean gradient norm at some volumes (B, S, S, S) is 1.

        Without biases the values are homogeneous of degree one in every layer's weights, so that all layers take the same
        share. Else the random weights, which respond to noise most, have norms near 40, and the penalty keeps the critic from
        learning.
        """
        layers = [*self.blocks, self.head]
        factor = float(gradient_norms(self, x).mean().detach()) ** (-1 / len(layers))
        with torch.no_grad():
            for layer in layers:
                layer.weight *= factor


def gradient_norms(critic: nn.Module, x: Tensor) -> Tensor:
    """Norms of the critic's gradient at volumes (B, S, S, S), dual to the root mean square over their voxels; shape (B,)."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    norms: Tensor = gradient.flatten(1).norm(dim=1) * gradient[0].numel() ** 0.5
    return norms


def estimate_distance(
    real: Volumes, generated: Volumes, effort: Effort, seed: int, device: torch.device | str = "cpu"
) -> Estimate:
    """Wasserstein-1 distance of two sets of volumes, estimated by a critic.

    The critic is trained on a random half of each side (the larger one) and its mean values are compared on the other, so that
    knowing single volumes by heart gains nothing: for two sets of one distribution the expectation is 0, and an estimate may be
    negative. The ground distance of two volumes is the root mean square of their difference over the voxels: if two sets differ by
    a constant added to all voxels, the distance is that constant, whatever their resolution. A critic of few steps, or one that
    generalises badly from few volumes, underestimates.

    Args:
        real, generated: sides of 2 volumes or more each, of one edge.
        effort: how the critic is trained.
        seed: of halves, weights, batches and the points where the penalty is taken.
        device: of the training; all random numbers are drawn on the CPU.
    Source: Gulrajani et al. 2017, algorithm 1, without its generator.
    """
    with one_thread() if real.edge <= _SMALL else nullcontext():
        return _estimate(real, generated, effort, seed, device)


def _estimate(real: Volumes, generated: Volumes, effort: Effort, seed: int, device: torch.device | str) -> Estimate:
    generator = torch.Generator().manual_seed(seed)
    sides = real, generated
    halves = [_halves(side.count, generator) for side in sides]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = Critic(real.edge, effort.width).to(device)
    optimizer = torch.optim.Adam(critic.parameters(), lr=effort.lr, betas=_BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / effort.steps)
    gaps = []
    for step in range(effort.steps):
        batches = [_some(train, effort.batch_size, generator) for train, _ in halves]
        first, second = (side.read(batch).to(device) for side, batch in zip(sides, batches, strict=True))
        between = _between(first, second, generator)
        if step == 0:
            critic.scale_to(between)
        gap = critic(first).mean() - critic(second).mean()
        loss = effort.penalty * (gradient_norms(critic, between) - 1.0).square().mean() - gap
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        gaps.append(gap.detach())
    unseen = [rest for _, rest in halves]
    values = [_values(critic, side, rest, device) for side, rest in zip(sides, unseen, strict=True)]
    pairs = min(_MEASURED_TOGETHER, *map(len, unseen))
    first, second = (side.read(rest[:pairs]).to(device) for side, rest in zip(sides, unseen, strict=True))
    norm = float(gradient_norms(critic, _between(first, second, generator)).mean().detach())
    parts = np.array_split(torch.stack(gaps).cpu().numpy(), min(_TRACE, effort.steps))
    spread = [float(np.var(each, ddof=1)) / norm**2 if len(each) > 1 else None for each in values]
    distance = float(values[0].mean() - values[1].mean()) / norm
    return Estimate(distance, (spread[0], spread[1]), norm, [float(part.mean()) for part in parts])


def _merged(x: Tensor, edge: int) -> Tensor:
    """Blocks of edge³ as channels: (B, D, H, W, C) to (B, D/edge, H/edge, W/edge, edge³·C)."""
    batch, depth, height, width, channels = x.shape
    d, h, w = depth // edge, height // edge, width // edge
    blocks = x.reshape(batch, d, edge, h, edge, w, edge, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return blocks.reshape(batch, d, h, w, edge**3 * channels)


def _halves(count: int, generator: torch.Generator) -> tuple[Places, Places]:
    """Random indices to train on, and the rest, of which there is at least one."""
    order: Places = torch.randperm(count, generator=generator).numpy()
    return order[: (count + 1) // 2], order[(count + 1) // 2 :]


def _some(places: Places, count: int, generator: torch.Generator) -> Places:
    return places[torch.randint(len(places), (count,), generator=generator).numpy()]


def _between(first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """A random point on the line between each pair of volumes."""
    share = torch.rand((len(first), 1, 1, 1), generator=generator).to(first.device)
    return first + share * (second - first)


def _values(critic: nn.Module, side: Volumes, places: Places, device: torch.device | str) -> NDArray[np.float64]:
    """The critic's values of some volumes."""
    starts = range(0, len(places), _MEASURED_TOGETHER)
    with torch.no_grad():
        found = [critic(side.read(places[k : k + _MEASURED_TOGETHER]).to(device)).double().cpu() for k in starts]
    return torch.cat(found).numpy()
