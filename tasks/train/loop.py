"""The training loop of all families: one visible loop over one resumable state.

Every random choice (batch, times, noise) is a pure function of the seed and the batch's position, so a training that is stopped
after step n and resumed computes what an uninterrupted one computes: on one CPU with the same threads, bit-identical weights.
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
from prdit_models.families.family import Batch, Losses
from prdit_models.learning_rate import decay_factor
from prdit_models.networks.compilation import CompiledNetwork
from storage.checkpoints import WEIGHTS_FILES, ResumeStates, Tensors, save_tensors
from storage.documents.checkpoint import Gates
from storage.documents.training_state import TrainingPosition
from storage.errors import ComputationError, InputError
from storage.files import naming_path, write_text_atomic
from tasks.model.compute import autocast
from tasks.train.averages import PowerAverages
from tasks.train.best import BestWeights, finite
from tasks.train.data import batch_indices, batch_shifts
from tasks.train.setup import Assembly
from tasks.train.spec import BEST_WEIGHTS, METRICS, RESUME_STATES, TrainSpec

_MAX_LOSS = 1e5  # SPEC §4: above it a step is skipped
_MAX_SKIPPED_IN_A_ROW = 50
_TIMES = ("time_ms", "train/steps_per_s")
_RECENT = 50  # steps whose mean is "the last loss"
_NO_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_TURN_SEEDS = 2**40  # distance between the seeds of the optimisers of one step
logger = logging.getLogger("prdit.train")


class Stopped(Exception):
    """The training was asked to stop; its state is saved and the next run resumes from it."""


class Training:
    """One training: module, EMA, optimisers and position.

    Args:
        assembly: what is trained on what.
        spec: the job.
    """

    def __init__(self, assembly: Assembly, spec: TrainSpec) -> None:
        self.assembly = assembly
        self.spec = spec
        self.config = spec.config
        self.step = 0
        self.updates = 0  # optimiser steps taken: skipped ones do not count (SPEC §4)
        self.first_loss: float | None = None
        self.recent: deque[float] = deque(maxlen=_RECENT)
        module = assembly.module
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.network: Any = CompiledNetwork(module) if self.config.compile else module
        made, turns = assembly.family.optimizers(module, assembly.training), assembly.family.turns
        if set(made) != set(turns):
            raise InputError(
                f"Family {assembly.info.family!r} gave optimisers {sorted(made)} for its turns {sorted(turns)}; each needs one."
            )
        self.optimizers = {turn: made[turn] for turn in turns}
        stepped = [id(p) for o in self.optimizers.values() for group in o.param_groups for p in group["params"]]
        if len(stepped) != len(set(stepped)) or not set(stepped) <= {id(p) for p in self.parameters.values()}:
            raise InputError(
                f"The optimisers of family {assembly.info.family!r} share a parameter, or have one that is not trained (frozen or "
                "of another module); each trained parameter belongs to one of them at most."
            )
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        scratch = spec.directory / "work"
        self.resume_states = ResumeStates(scratch / RESUME_STATES)
        self.metrics_path = scratch / METRICS
        self.best = BestWeights(scratch / BEST_WEIGHTS) if self.config.select == "best" else None
        every = self.config.ema_snapshots
        self.power = PowerAverages(spec.directory, self.parameters, every) if every else None
        self._skipped_in_a_row = dict.fromkeys(turns, 0)
        self._generator = torch.Generator(device=assembly.device)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, should_stop: Any) -> None:
        """Train from the newest undamaged state to the configured step and write the checkpoint's files."""
        self.restore()
        config = self.config
        self.assembly.module.train()
        if self.step == 0:
            self._log_validation()
        window: list[dict[str, float]] = []
        clock = time.monotonic()
        while self.step < config.steps:
            if should_stop():
                self.save()
                raise Stopped(f"stopped at step {self.step} of {config.steps}; the next run resumes from there")
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
        """One step of every optimiser in turn, then the averages (SPEC §4); where any of them stepped, it was a step."""
        self.step += 1
        values: dict[str, float] = {}
        stepped = False
        for number, (turn, optimizer) in enumerate(self.optimizers.items()):
            found = self._turn(number, turn, optimizer)
            if found is None:  # skipped: not a finite loss or gradient
                found = {"loss": math.nan, "grad_norm": math.nan}
            else:
                stepped = stepped or bool(found)
            values |= found if number == 0 else {f"{turn}_{name}": value for name, value in found.items()}
        if not stepped:
            return values
        self.updates += 1
        decay = ema_decay(self.updates, self.config.ema_decay, warmup=self.config.ema_warmup)
        ema_update(list(self.ema.values()), list(self.parameters.values()), decay)
        if self.power:
            self.power.update(self.updates, self.parameters.values())
        if math.isfinite(values.get("loss", math.nan)):
            self.first_loss = values["loss"] if self.first_loss is None else self.first_loss
            self.recent.append(values["loss"])
        return values

    def _turn(self, number: int, turn: str, optimizer: torch.optim.Optimizer) -> dict[str, float] | None:
        """One step of one optimiser: losses of its batches, backward, clip, step.

        Returns: means of the losses and the gradient's norm; empty where the family makes no step; None where it was skipped.
        """
        config = self.config
        self.assembly.module.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for part in range(config.accumulation):
            losses = self._losses(number, turn, (self.step - 1) * config.accumulation + part)
            if losses is None:
                return {}
            if "loss" not in losses:
                raise InputError(
                    f"Family {self.assembly.info.family!r} gave {sorted(losses)} for its turn {turn!r}; what it minimises must be "
                    "there as 'loss'."
                )
            values = {name: float(value.detach()) for name, value in losses.items()}
            if not math.isfinite(values["loss"]) or values["loss"] > _MAX_LOSS:
                self._skip(turn, values["loss"])
                return None
            (losses["loss"] / config.accumulation).backward()
            sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        if not torch.isfinite(norm):  # clipping by a non-finite norm would write NaN into every weight
            self._skip(turn, float(norm))
            return None
        factor = decay_factor(self.step - 1, config.steps, config.lr_decay)
        for group in optimizer.param_groups:
            group["lr"] = factor * group["initial_lr"]
        optimizer.step()
        self._skipped_in_a_row[turn] = 0
        return {name: total / config.accumulation for name, total in sums.items()} | {"grad_norm": float(norm)}

    def _losses(self, number: int, turn: str, place: int) -> Losses | None:
        """Losses of one optimiser on the batch at a position in the sequence of batches."""
        assembly, config = self.assembly, self.config
        indices = batch_indices(len(assembly.data), config.batch_size, config.seed, place)
        shifts = batch_shifts(config.batch_size, config.max_shift, config.seed, place)
        batch = Batch(
            assembly.data.batch(indices, shifts).to(assembly.device),
            None if assembly.labels is None else assembly.labels[indices].to(assembly.device),
            no_label=len(assembly.info.label_values),
            label_dropout=config.label_dropout,
        )
        seed = config.seed * 1_000_003 + place + number * _TURN_SEEDS
        self._generator.manual_seed(seed)
        torch.manual_seed(seed)  # for a family with dropout
        with autocast(assembly.device, config.precision):
            return assembly.family.losses(turn, self.network, batch, assembly.training, self._generator)

    def _skip(self, turn: str, value: float) -> None:
        self._skipped_in_a_row[turn] += 1
        logger.warning("step %d skipped: loss or gradient norm is %s (optimiser %s)", self.step, value, turn)
        if self._skipped_in_a_row[turn] >= _MAX_SKIPPED_IN_A_ROW:
            raise ComputationError(
                f"{_MAX_SKIPPED_IN_A_ROW} steps in a row had a loss or gradient that is not finite (last at step {self.step}). "
                f"Lower lr (now {self.config.lr}) or use precision fp32; then start again."
            )

    # -- validation and metrics ---------------------------------------------------------------------------------------

    def _log_validation(self) -> None:
        raw, ema = self._validate(), self._validate_ema()
        parts = {f"val/loss_{name}": value for name, value in ema.items() if name != "loss"}
        self._log({"val/loss": raw["loss"], "val/loss_ema": ema["loss"]} | parts)
        self._last_validation = (raw, ema)
        if self.best:
            buffers = _arrays(self._buffers())
            self.best.offer(self.step, raw, ema, _arrays(self.parameters) | buffers, _arrays(self.ema) | buffers)

    def _validate(self) -> dict[str, float]:
        assembly = self.assembly
        module, held_out = assembly.module, assembly.validation
        module.eval()
        with torch.no_grad():
            found = assembly.family.validate(
                module, held_out.volumes, held_out.labels, assembly.training, self.config.batch_size
            )
        module.train()
        if "loss" not in found:
            raise InputError(
                f"Family {assembly.info.family!r} validates to {sorted(found)}; expected 'loss' among them."
            )
        return found

    def _validate_ema(self) -> dict[str, float]:
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
        with naming_path(self.metrics_path):
            self.metrics_path.parent.mkdir(parents=True, exist_ok=True)
            with self.metrics_path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    # -- state ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a resumable state: trained weights, EMA, optimiser moments, position."""
        names: dict[Any, str] = {parameter: name for name, parameter in self.parameters.items()}
        moments: Tensors = {}
        for turn, optimizer in self.optimizers.items():
            for parameter, slots in optimizer.state.items():
                values = {slot: torch.as_tensor(value) for slot, value in slots.items() if value is not None}
                moments |= {f"{turn}:{slot}:{names[parameter]}": v.detach().cpu().numpy() for slot, v in values.items()}
        position = TrainingPosition(
            step=self.step,
            updates=self.updates,
            first_loss=self.first_loss,
            recent=tuple(self.recent),
            best=self.best.record if self.best else None,
            snapshots=tuple(self.power.taken) if self.power else (),
        )
        groups = {"model": _arrays(self.parameters), "ema": _arrays(self.ema), "optimizer": moments}
        groups |= {"buffers": _arrays(self._buffers())} | (self.power.groups() if self.power else {})
        self.resume_states.save(position, groups)

    def restore(self) -> None:
        """Resume from the newest undamaged state, or start; metrics after that step are removed (they are logged again)."""
        found = self.resume_states.newest_good()
        if found is None:
            self._cut_metrics(-1)
            return
        position, groups = found
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(groups["model"][name]))
                self.ema[name].copy_(torch.from_numpy(groups["ema"][name]))
        for name, buffer in self._buffers().items():
            buffer.copy_(torch.from_numpy(groups["buffers"][name]))
        for key, value in groups["optimizer"].items():
            turn, slot, name = key.split(":", 2)
            tensor = torch.from_numpy(value).clone()
            self.optimizers[turn].state[self.parameters[name]][slot] = tensor.to(self.assembly.device)
        self.step, self.updates = position.step, position.updates
        self.first_loss, self.recent = position.first_loss, deque(position.recent, maxlen=_RECENT)
        if self.best:
            self.best.record = position.best
        if self.power:
            self.power.restore(groups, position.snapshots)
        self._cut_metrics(self.step)
        logger.info("resuming from step %d", self.step)

    def _by_every_name(self, tensors: Tensors) -> Tensors:
        """Tensors of parameters, under every name that a shared parameter has in the state dict."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        every = self.assembly.module.named_parameters(remove_duplicate=False)
        shared = {name: names[id(parameter)] for name, parameter in every if id(parameter) in names}
        return tensors | {name: tensors[first] for name, first in shared.items()}

    def _buffers(self) -> dict[str, Tensor]:
        """Entries of the state dict that are not parameters, such as running statistics."""
        module = self.assembly.module
        parameters = dict(module.named_parameters())
        return {name: value for name, value in module.state_dict().items() if name not in parameters}

    def _cut_metrics(self, step: int) -> None:
        if not self.metrics_path.is_file():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # an incomplete line left by a killed process
        write_text_atomic(self.metrics_path, "".join(kept))

    def _write_artifact(self) -> None:
        directory: Path = self.spec.directory
        weights = _arrays(self.assembly.module.state_dict())
        model, averaged, step = weights, weights | self._by_every_name(_arrays(self.ema)), self.step
        raw, ema = self._last_validation
        if self.best:
            step, raw, ema, chosen, chosen_ema = self.best.take()
            model, averaged = weights | self._by_every_name(chosen), weights | self._by_every_name(chosen_ema)
        save_tensors(directory / WEIGHTS_FILES["raw"], model)
        save_tensors(directory / WEIGHTS_FILES["ema"], averaged)
        if self.power:
            self.power.keep(self.updates)
            self.power.write_index()
        raw, ema = finite(raw), finite(ema)
        gates = Gates(
            first_loss=self.first_loss,
            last_loss=sum(self.recent) / len(self.recent) if self.recent else None,
            val_loss=raw.get("loss"),
            val_loss_ema=ema.get("loss"),
            val_loss_ema_parts={name: value for name, value in ema.items() if name != "loss"},
        )
        self.assembly.info.to_document(step=step, seed=self.config.seed, gates=gates).save(directory)
        # Times stay in scratch: a repeated training must give the same artifact, or every later stage runs again.
        points = [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({key: value for key, value in point.items() if key not in _TIMES}) for point in points]
        write_text_atomic(directory / METRICS, "".join(line + "\n" for line in lines))


def _means(window: list[dict[str, float]]) -> dict[str, float]:
    """Means over an interval by name, each over the steps that have it; the loss of a skipped step is NaN."""
    names = dict.fromkeys(name for point in window for name in point)
    values = {name: [point[name] for point in window if name in point] for name in names}
    return {f"train/{name}": sum(column) / len(column) for name, column in values.items()}


def _arrays(tensors: dict[str, Any]) -> Tensors:
    """As NumPy arrays, in their own type where NumPy has it."""
    parts = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    return {name: (part.float() if part.dtype in _NO_NUMPY else part).numpy() for name, part in parts.items()}
