"""One optimiser step as the training loop makes it, with its time by phase."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prdit_models.diffusion.cosine import CosineProcess
from prdit_models.ema import ema_decay, ema_update
from prdit_models.networks.config import ModelConfig
from prdit_models.networks.prdit import PRDiT, trainable_parameters
from tests.gpu_check.setting import Setting

PHASES = ("forward_s", "backward_s", "optimiser_s")


@dataclass(frozen=True)
class Batch:
    """Clean volumes (B, 1, S, S, S), their noise and their steps, on the device."""

    x0: Tensor
    eps: Tensor
    t: Tensor


class TrainingStep:
    """Network, EMA and optimiser of a stage-2 training (local branch frozen), in the order of `tasks.train.loop`.

    Args:
        setting: where.
        network: on the device.
        precision: `fp32` or `bf16`.
        lr: of AdamW.
        call: what is called for the network, if it is compiled.
    """

    def __init__(
        self,
        setting: Setting,
        network: PRDiT,
        precision: str,
        *,
        lr: float = 1e-4,
        call: Callable[..., Tensor] | None = None,
    ) -> None:
        self.setting = setting
        self.precision = precision
        self.network = network
        self.call = call or network
        self.process = CosineProcess()
        self.parameters = trainable_parameters(network)
        self.ema = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0, fused=True)
        self.updates = 0

    def loss(self, batch: Batch) -> Tensor:
        """Of one batch, its graph kept."""
        x_t = self.process.q_sample(batch.x0, batch.t, batch.eps)
        with self.setting.autocast(self.precision):
            output = self.call(x_t, batch.t)
        return self.process.losses(output.float(), batch.x0, batch.eps)["loss"]

    def __call__(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """Loss and seconds by phase; like the loop it waits for the loss and for the gradient's norm."""
        watch = Stopwatch(self.setting)
        loss = self.loss(batch)
        value = float(loss.detach())
        watch.lap("forward_s")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        watch.lap("backward_s")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not torch.isfinite(norm):
            raise RuntimeError(f"The gradient's norm is {float(norm)} at loss {value}.")
        self.optimizer.step()
        self.updates += 1
        ema_update(self.ema, self.parameters, ema_decay(self.updates, 0.9999))
        watch.lap("optimiser_s")
        return value, watch.laps


class Stopwatch:
    """Seconds between laps, the device's work done."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.laps: dict[str, float] = {}
        self._last = self._now()

    def lap(self, name: str) -> None:
        """End a lap."""
        now = self._now()
        self.laps[name] = now - self._last
        self._last = now

    def _now(self) -> float:
        self._setting.synchronize()
        return time.perf_counter()


def random_batch(setting: Setting, config: ModelConfig, batch: int) -> Batch:
    """Noise for volumes: time and memory do not depend on values."""
    generator = torch.Generator(device=setting.device).manual_seed(0)
    shape = (batch, config.in_channels, *(config.volume_size,) * 3)
    process = CosineProcess()
    x0 = torch.rand(shape, generator=generator, device=setting.device) * 2 - 1
    return Batch(x0, process.noise(shape, generator), process.draw_times(batch, generator))
