"""The training loop of all stages: one visible loop over one resumable state.

Every random choice (batch, t, noise) is a pure function of (seed, step), so a training stopped after step n and resumed
computes what an uninterrupted one computes; on one CPU with the same threads the weights are equal bit by bit.
"""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prdit_models.ema import ema_decay, ema_update
from prdit_models.learning_rate import decay_factor
from prdit_models.networks.cascade import CascadeParts, RefinedPRDiT, low_frequency_loss
from prdit_models.networks.compilation import CompiledNetwork
from storage.checkpoints import WEIGHTS_FILES, ResumeStates, Tensors, save_tensors
from storage.files import write_json_atomic, write_text_atomic
from tasks.train.averages import PowerAverages
from tasks.train.best import BestWeights
from tasks.train.config import TrainConfig, TrainGlobalConfig, TrainRefinerConfig
from tasks.train.data import batch_indices, batch_shifts
from tasks.train.setup import Assembly, autocast, checkpoint_info
from tasks.train.spec import METRICS, TrainSpec

_MAX_LOSS = 1e5  # SPEC §4: above it a step is skipped
_MAX_SKIPPED_IN_A_ROW = 50
_TIMES = ("time_ms", "train/steps_per_s")
_RECENT = 50  # steps whose mean is "the last loss"
logger = logging.getLogger("prdit.train")


class Stopped(Exception):
    """The training was asked to stop; its state is saved and the next run goes on from there."""


class Training:
    """One training: model, EMA, optimiser and position.

    Args:
        assembly: what is trained on what.
        spec: the job.
        stop: called before every step; True saves the state and raises `Stopped`.
    """

    def __init__(self, assembly: Assembly, spec: TrainSpec) -> None:
        self.assembly = assembly
        self.spec = spec
        self.config = spec.stage_config()
        self.step = 0
        self.updates = 0  # optimiser steps taken: skipped ones do not count (SPEC §4)
        self.first_loss: float | None = None
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.parameters = {name: p for name, p in assembly.model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.network: Any = CompiledNetwork(assembly.model) if self.config.compile else assembly.model
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.parameters, self.config),
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        scratch = spec.directory / "work"
        self.resume_states = ResumeStates(scratch / "checkpoints")
        self.metrics_path = scratch / METRICS
        self.best = BestWeights(scratch / "best") if getattr(self.config, "select", "last") == "best" else None
        every = self.config.ema_snapshots
        self.power = PowerAverages(spec.directory, self.parameters, every) if every else None
        self._skipped_in_a_row = 0
        self._generator = torch.Generator(device=assembly.device)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, should_stop: Any) -> None:
        """Train from the newest good state to the configured step and write the checkpoint's files."""
        self.restore()
        assembly, config = self.assembly, self.config
        assembly.model.train()
        if self.step == 0:
            self._log_validation()
        window: list[dict[str, float]] = []
        clock = time.monotonic()
        while self.step < config.steps:
            if should_stop():
                self.save()
                raise Stopped(f"stopped at step {self.step} of {config.steps}; the next run goes on from there")
            window.append(self._train_step())
            if self.step % config.log_every == 0 or self.step == config.steps:
                now = time.monotonic()
                self._log(_means(window) | {"train/steps_per_s": len(window) / (now - clock)})
                window, clock = [], now
            if self.step % config.val_every == 0 or self.step == config.steps:
                self._log_validation()
                clock = time.monotonic()
            if self.step % config.checkpoint_every == 0 and self.step < config.steps:
                self.save()
                clock = time.monotonic()
        self._write_artifact()

    def _train_step(self) -> dict[str, float]:
        """One optimiser step (SPEC §4): draw, loss, skip if not finite, backward, clip, step, EMA."""
        assembly, config = self.assembly, self.config
        indices = batch_indices(len(assembly.train), config.batch_size, config.seed, self.step)
        shifts = batch_shifts(config.batch_size, config.max_shift, config.seed, self.step)
        x0 = assembly.train.batch(indices, shifts).to(assembly.device)
        self._generator.manual_seed(config.seed * 1_000_003 + self.step)
        t = assembly.process.draw_steps(
            len(x0),
            self._generator,
            distribution=config.time_distribution,
            mean=config.logit_mean,
            std=config.logit_std,
        )
        eps = assembly.process.noise(tuple(x0.shape), self._generator)
        losses = self._losses(x0, t, eps, indices)
        values = {name: float(value.detach()) for name, value in losses.items()}
        self.step += 1
        if not math.isfinite(values["loss"]) or values["loss"] > _MAX_LOSS:
            return self._skip(values["loss"])
        if self.first_loss is None:
            self.first_loss = values["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.clip_norm)
        if not torch.isfinite(norm):  # clipping by a non-finite norm would write NaN into every weight
            return self._skip(float(norm))
        factor = decay_factor(self.step - 1, config.steps, config.lr_decay)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        self.optimizer.step()
        self.updates += 1
        self._skipped_in_a_row = 0
        decay = ema_decay(self.updates, config.ema_decay, warmup=config.ema_warmup)
        ema_update(list(self.ema.values()), list(self.parameters.values()), decay)
        if self.power:
            self.power.update(self.updates, self.parameters.values())
        self.recent.append(values["loss"])
        return values | {"grad_norm": float(norm)}

    def _losses(self, x0: Tensor, t: Tensor, eps: Tensor, indices: list[int]) -> dict[str, Tensor]:
        """What this step minimises, `loss`, and its parts."""
        assembly, config = self.assembly, self.config
        x_t = assembly.process.q_sample(x0, t, eps)
        with autocast(assembly.device, config.precision):
            if isinstance(config, TrainRefinerConfig) and isinstance(assembly.model, RefinedPRDiT):
                parts = CascadeParts(*(part.float() for part in self.network(x_t, t, parts=True)))
                losses = assembly.process.losses(parts.upsampled + parts.head, x0, eps, t)
                low = low_frequency_loss(parts, assembly.network.in_channels).mean()
                return losses | {"loss": losses["loss"] + config.low_frequency_weight * low, "loss_low_frequency": low}
            labels = self._labels(indices)
            output = self.network(x_t, t, labels) if labels is not None else self.network(x_t, t)
        return assembly.process.losses(output.float(), x0, eps, t)

    def _labels(self, indices: list[int]) -> Tensor | None:
        """Labels of a batch, some of them dropped for guidance."""
        labels, config = self.assembly.labels, self.config
        if labels is None or not isinstance(config, TrainGlobalConfig):
            return None
        chosen = labels[indices].to(self.assembly.device)
        draws = torch.rand(len(indices), generator=self._generator, device=self.assembly.device)
        return torch.where(draws < config.label_dropout, len(self.assembly.label_values), chosen)

    def _skip(self, value: float) -> dict[str, float]:
        self._skipped_in_a_row += 1
        logger.warning("step %d skipped: loss or gradient norm is %s", self.step, value)
        if self._skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"{_MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or gradient that is not finite (last at step {self.step}). "
                f"Lower lr (now {self.config.lr}) or use precision fp32; then start again."
            )
        return {"loss": math.nan, "grad_norm": math.nan}

    # -- validation and metrics ---------------------------------------------------------------------------------------

    def _log_validation(self) -> None:
        raw, ema = self._validate(), self._validate_ema()
        point = {"val/loss": _mean(raw), "val/loss_ema": _mean(ema)}
        self._log(point | {f"val/loss_t{t:03d}": value for t, value in ema.items()})
        self._last_validation = (raw, ema)
        if self.best:
            self.best.offer(self.step, raw, ema, _arrays(self.parameters), _arrays(self.ema))

    def _validate(self) -> dict[int, float]:
        return self.assembly.validation.losses(self.assembly.model, self.assembly.device, self.config.batch_size)

    def _validate_ema(self) -> dict[int, float]:
        with self._ema_weights():
            return self._validate()

    @contextmanager
    def _ema_weights(self) -> Iterator[None]:
        """The model with EMA weights inside the block (storages are swapped, nothing is copied)."""

        def swap() -> None:
            for name, parameter in self.parameters.items():
                parameter.data, self.ema[name] = self.ema[name], parameter.data

        swap()
        try:
            yield
        finally:
            swap()

    def _log(self, values: dict[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = json.dumps({"step": self.step, "time_ms": int(time.time() * 1000), **finite})
        self.metrics_path.parent.mkdir(parents=True, exist_ok=True)
        with self.metrics_path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    # -- state ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a resumable state: trained weights, EMA, optimiser moments, position."""
        moments: Tensors = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{key}:{name}"] = value.detach().cpu().numpy()
        self.resume_states.save(
            self.step,
            {"model": _arrays(self.parameters), "ema": _arrays(self.ema), "optimizer": moments}
            | (self.power.groups() if self.power else {}),
            {
                "updates": self.updates,
                "first_loss": self.first_loss,
                "recent": list(self.recent),
                "best": self.best.record if self.best else None,
                "snapshots": self.power.taken if self.power else [],
            },
        )

    def restore(self) -> None:
        """Go on from the newest good state, or start; metrics after that step are cut off (they will come again)."""
        found = self.resume_states.newest_good()
        if found is None:
            self._cut_metrics(-1)
            return
        state, groups = found
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(groups["model"][name]))
                self.ema[name].copy_(torch.from_numpy(groups["ema"][name]))
        for key, value in groups["optimizer"].items():
            slot, name = key.split(":", 1)
            tensor = torch.from_numpy(value).clone()
            self.optimizer.state[self.parameters[name]][slot] = tensor.to(self.assembly.device)
        self.step, self.updates = state["step"], state["updates"]
        self.first_loss, self.recent = state["first_loss"], deque(state["recent"], maxlen=_RECENT)
        if self.best:
            self.best.record = state["best"]
        if self.power:
            self.power.restore(groups, state["snapshots"])
        self._cut_metrics(self.step)
        logger.info("going on from step %d", self.step)

    def _cut_metrics(self, step: int) -> None:
        if not self.metrics_path.is_file():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the half line a kill left behind
        write_text_atomic(self.metrics_path, "".join(kept))

    def _write_artifact(self) -> None:
        directory: Path = self.spec.directory
        weights = _arrays(self.assembly.model.state_dict())
        model, averaged, step = weights, weights | _arrays(self.ema), self.step
        raw, ema = self._last_validation
        if self.best:
            step, raw, ema, chosen, chosen_ema = self.best.take()
            model, averaged = weights | chosen, weights | chosen_ema
        save_tensors(directory / WEIGHTS_FILES["raw"], model)
        save_tensors(directory / WEIGHTS_FILES["ema"], averaged)
        if self.power:
            self.power.keep(self.updates)
            self.power.write_index()
        gates = {
            "first_loss": self.first_loss,
            "last_loss": sum(self.recent) / len(self.recent) if self.recent else None,
            "val_loss": _mean(raw),
            "val_loss_ema": _mean(ema),
            "val_loss_ema_by_t": {str(t): value for t, value in ema.items()},
        }
        write_json_atomic(directory / "checkpoint.json", checkpoint_info(self.assembly, self.spec, step, gates))
        # The spool's times stay in scratch: a training repeated must give the same artifact, or all that follows runs again.
        points = [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({key: value for key, value in point.items() if key not in _TIMES}) for point in points]
        write_text_atomic(directory / METRICS, "".join(line + "\n" for line in lines))


def parameter_groups(parameters: dict[str, torch.nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """What the optimiser trains at which learning rate: one rate, but for a stage-3 base that is trained along."""
    rates = {"base.": config.fine_tune_lr} if isinstance(config, TrainRefinerConfig) and config.fine_tune_lr else {}
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        rate = next((rate for prefix, rate in rates.items() if name.startswith(prefix)), config.lr)
        groups.setdefault(rate, []).append(parameter)
    return [{"params": group, "lr": rate, "initial_lr": rate} for rate, group in groups.items()]


def _means(window: list[dict[str, float]]) -> dict[str, float]:
    """Means of the steps of an interval, by name; of a skipped step only its loss is known."""
    names = dict.fromkeys(name for point in window for name in point)
    values = {name: [point.get(name, math.nan) for point in window] for name in names}
    return {f"train/{name}": sum(column) / len(column) for name, column in values.items()}


def _arrays(tensors: dict[str, Any]) -> Tensors:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


def _mean(losses: dict[int, float]) -> float:
    return sum(losses.values()) / len(losses)
