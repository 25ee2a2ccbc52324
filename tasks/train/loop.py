"""The training loop of all families: one visible loop over one resumable state, the same on every rank.

Every random choice is a pure function of the seed and a volume's position in the sequence of volumes, so a training that is stopped
after step n and resumed computes what an uninterrupted one computes: on one CPU with the same threads and ranks, bit-identical
weights; on another number of ranks the same batches, added up in another order.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

from prdit_models.ema import ema_decay, ema_update
from prdit_models.learning_rate import decay_start
from storage.artifacts import SCRATCH
from storage.checkpoints import ResumeStates, StateWriter
from storage.documents.provenance import Cost
from storage.documents.training_state import TrainingPosition
from storage.errors import ComputationError, InputError
from storage.lease import Guard
from tasks.run.machine import peak_memory
from tasks.train.artifact import write_artifact
from tasks.train.averages import PowerAverages
from tasks.train.best import BestWeights
from tasks.train.extension import settings_digest
from tasks.train.loader import Loaded, Loader, Order, default_workers
from tasks.train.point_log import PointLog
from tasks.train.previews import Previews
from tasks.train.ranks import Ranks
from tasks.train.setup import Assembly
from tasks.train.spec import BEST_WEIGHTS, METRICS, PREVIEWS, RESUME_STATES, TrainSpec
from tasks.train.speed import Speed
from tasks.train.state import RECENT, Progress, TrainedArrays
from tasks.train.stepper import Stepper, Values
from tasks.train.validation import Losses, Validation

_SKIPPED_UNTIL_REWIND = 20  # steps in a row
_MAX_REWINDS = 3
_REWOUND_SEEDS = 2**40  # distance between the seeds of the data before and after going back
logger = logging.getLogger("prdit.train")


class Stopped(Exception):
    """The training was asked to stop; its state is saved and the next run resumes from it."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}; the next run resumes from there")
        self.step = step


class Training:
    """One training on one rank: weights, their averages, optimisers and position.

    Args:
        assembly: what is trained on what.
        spec: the job.
        ranks: which of the processes this is.
        guard: entered around everything that is written; raises once another launch has taken over.
    """

    def __init__(
        self, assembly: Assembly, spec: TrainSpec, ranks: Ranks | None = None, guard: Guard = nullcontext
    ) -> None:
        self.assembly = assembly
        self.spec = spec
        self.config = config = spec.config
        self.ranks = ranks or Ranks()
        self.progress = Progress(skipped_in_a_row=dict.fromkeys(assembly.family.turns, 0))
        self.stepper = Stepper(assembly, config, self.ranks)
        self.arrays = TrainedArrays(assembly.module, self.stepper.optimizers)
        scratch = spec.directory / SCRATCH
        self.resume_states = ResumeStates(
            scratch / RESUME_STATES,
            guard,
            keep_at=decay_start(config.steps, config.lr_decay) if config.lr_decay else None,
        )
        self.points = PointLog(scratch / METRICS)
        self.best = BestWeights(scratch / BEST_WEIGHTS) if config.select == "best" else None
        every = config.ema_snapshots
        self.power: PowerAverages | None = None
        if every and self.ranks.first:
            self.power = PowerAverages(spec.directory, self.arrays.parameters, every)
        self.validation = Validation(assembly, self.arrays, config.batch_size // self.ranks.world or 1, self.ranks)
        self.previews = Previews(assembly, self.arrays, scratch / PREVIEWS, self.ranks, guard)
        self._guard = guard
        workers = config.loader_workers
        self._num_workers = default_workers(assembly.device, self.ranks.local_world) if workers is None else workers
        self._writer = StateWriter(self.resume_states)
        self._last_validation: tuple[Losses, Losses] | None = None
        self._loader: Loader | None = None
        self._batches: Iterator[Loaded] = iter(())

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Train from the newest undamaged state to the configured step, or through the configured seconds; the first rank writes
        the checkpoint's files.

        Args:
            should_stop: whether this rank was asked to stop; all ranks agree on it between steps.
        Raises: Stopped: they were; the state is on disk.
        """
        config, progress = self.config, self.progress
        if self.ranks.first:
            with self._guard():
                self.points.open()
        self.restore()
        self.assembly.module.train()
        speed = Speed(self.assembly, config, self.ranks, progress.step)
        if progress.step == 0:
            with speed.paused():
                self._validate()
        due, over = False, self._over()
        while not over:
            if self.ranks.any(should_stop()):
                self.save()
                self._writer.wait()
                raise Stopped(progress.step, config.steps)
            rewinds = progress.rewinds
            began = time.monotonic()
            self.train_step()
            progress.seconds += time.monotonic() - began
            over = self._over()
            if progress.rewinds != rewinds:
                continue
            if progress.step % config.log_every == 0:
                self._log_window(speed)
            with speed.paused():
                if progress.step % config.val_every == 0:
                    self._validate()
                if config.sample_every and progress.step % config.sample_every == 0:
                    self.previews.draw(progress.step)
                due = due or progress.step % config.checkpoint_every == 0
                # Not while steps fail: states of such steps would take the place of those to go back to.
                if (due and not any(progress.skipped_in_a_row.values())) or over:
                    self.save()
                    due = False
        if progress.window:
            self._log_window(speed, final=True)
        if progress.step % config.val_every or self._last_validation is None:
            self._validate(final=bool(progress.step % config.val_every))
        self._writer.wait()
        if self.ranks.first and self._last_validation:
            with self._guard():
                write_artifact(self, *self._last_validation)
                if self.best:
                    self.best.keep_only(position.best for position in self.resume_states.positions())

    def _over(self) -> bool:
        """Whether the training is at its end; ranks agree on the time, which each measures for itself."""
        if self.progress.step >= self.config.steps:
            return True
        return self.config.seconds is not None and self.ranks.any(self.progress.seconds >= self.config.seconds)

    def train_step(self) -> Values:
        """One step of every optimiser in turn, then the averages (SPEC §4); where any of them stepped, it was a step."""
        progress, config = self.progress, self.config
        batches = self.next_batches()
        progress.step += 1
        values: Values = {}
        stepped = False
        mean = progress.last_loss
        spike = math.inf
        # Of a mean that is not positive, as that of an adversarial loss can be, nothing is a multiple.
        if config.spike_factor and mean is not None and mean > 0 and len(progress.recent) == RECENT:
            spike = config.spike_factor * mean
        for turn in self.stepper.optimizers:
            first = turn == self.assembly.family.turns[0]
            found = self.stepper.step(progress.step, turn, batches, spike if first else math.inf)
            if found is None:
                self._skip(turn)
                values |= {"skipped" if first else f"{turn}_skipped": 1.0}
                continue
            stepped = stepped or bool(found)
            if found:
                progress.skipped_in_a_row[turn] = 0
            values |= found if first else {f"{turn}_{name}": value for name, value in found.items()}
        if stepped:
            self._average()
            progress.note(values.get("loss", math.nan))
        if max(progress.skipped_in_a_row.values()) >= _SKIPPED_UNTIL_REWIND:
            self._rewind()  # what the window was then is that of the state
        else:
            progress.window.append(values)
        return values

    def _average(self) -> None:
        self.progress.updates += 1
        decay = ema_decay(self.progress.updates, self.config.ema_decay, warmup=self.config.ema_warmup)
        ema_update(list(self.arrays.ema.values()), list(self.arrays.parameters.values()), decay)
        if self.power and self.power.update(self.progress.updates, self.arrays.parameters.values()):
            with self._guard():
                self.power.keep(self.progress.updates)

    def next_batches(self) -> list[Loaded]:
        """This rank's batches of the next step."""
        config, progress = self.config, self.progress
        if self._loader is None:
            seed = config.seed + progress.rewinds * _REWOUND_SEEDS
            world, rank = self.ranks.world, self.ranks.rank
            order = Order(len(self.assembly.data), config.batch_size, seed, rank, world)
            self._loader = Loader(
                self.assembly.data,
                order,
                self.assembly.draw,
                turns=len(self.stepper.optimizers),
                num_workers=self._num_workers,
                pin=self.assembly.device.type == "cuda",
            )
            self._batches = self._loader.batches(progress.step * config.accumulation)
        return [next(self._batches) for _ in range(config.accumulation)]

    def cost(self) -> Cost:
        """What the training took so far; its memory is that of this process, the one that came to its end."""
        config, device, progress = self.config, self.assembly.device, self.progress
        cuda = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) if cuda else peak_memory()
        return Cost(
            seconds=round(progress.seconds, 3),
            steps=progress.step,
            volumes=progress.step * config.batch_size * config.accumulation,
            peak_memory_bytes=peak,
            device=torch.cuda.get_device_name(device) if cuda else "cpu",
            threads=0 if cuda else torch.get_num_threads(),
            ranks=self.ranks.world,
        )

    # -- steps that cannot be taken -------------------------------------------------------------------------------------

    def _skip(self, turn: str) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row[turn] += 1
        logger.warning("step %d skipped: loss or gradient not finite, or too large (optimiser %s)", progress.step, turn)

    def _rewind(self) -> None:
        """Go back to the newest state before the steps that failed, and on with other data: the same data would fail again."""
        failed, rewinds = self.progress.step, self.progress.rewinds
        self._writer.wait()
        self.ranks.meet()  # the others read states, of which the first rank's writer must remove none meanwhile
        why = (
            f"{_SKIPPED_UNTIL_REWIND} steps in a row had a loss or gradient not finite or too large (at step {failed})"
        )
        found = None
        if rewinds < _MAX_REWINDS:
            found = self._load(
                lambda position: position.rewinds == rewinds and not any(position.skipped_in_a_row.values())
            )
        if found is None:
            again = f", after going back to an earlier state {rewinds} time(s)" if rewinds else ""
            raise ComputationError(
                f"{why}{again}. Lower lr (now {self.config.lr}), raise lr_warmup, or use precision fp32; then start again."
            )
        self.progress.rewinds = rewinds + 1
        logger.warning("%s: back to step %d, on with other data", why, self.progress.step)
        self._loader = None
        self._batches = iter(())  # ends its worker processes
        if self.ranks.first:
            self.resume_states.remove_after(self.progress.step)
        self.save()

    # -- validation and points ------------------------------------------------------------------------------------------

    def _validate(self, *, final: bool = False) -> None:
        raw, ema = self._last_validation = self.validation()
        parts = {f"val/loss_{name}": value for name, value in ema.items() if name != "loss"}
        self._log({"val/loss": raw["loss"], "val/loss_ema": ema["loss"]} | parts, final=final)
        if self.best and self.ranks.first:
            with self._guard():
                self.best.offer(self.progress.step, raw, ema, self.arrays)

    def _log_window(self, speed: Speed, *, final: bool = False) -> None:
        window, self.progress.window = self.progress.window, []
        waited = self._loader.waited_s if self._loader else 0.0
        spent = {"speed/training_s": self.progress.seconds}
        self._log(_means(window) | speed.values(self.progress.step, waited) | spent, final=final)

    def _log(self, values: Values, *, final: bool) -> None:
        if self.ranks.first:
            with self._guard():
                self.points.add(self.progress.step, values, rewinds=self.progress.rewinds, final=final)

    # -- state ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Hand a resumable state to the writer, after checking that all ranks have the same."""
        progress = self.progress
        self.ranks.share(list(self.arrays.buffers.values()))
        self.ranks.check_equal(self.arrays.replicated(), f"at step {progress.step}")
        if not self.ranks.first:
            return
        position = TrainingPosition(
            step=progress.step,
            steps=self.config.steps,
            updates=progress.updates,
            first_loss=progress.first_loss,
            recent=tuple(progress.recent),
            window=tuple({k: v if math.isfinite(v) else None for k, v in values.items()} for values in progress.window),
            rewinds=progress.rewinds,
            skipped=progress.skipped,
            skipped_in_a_row=dict(progress.skipped_in_a_row),
            best=self.best.record if self.best else None,
            snapshots=tuple(self.power.taken) if self.power else (),
            settings=settings_digest(self.spec),
            snapshot=self.spec.snapshot.digest,
            world=self.ranks.world,
            seconds=progress.seconds,
        )
        self._writer.submit(position, self.arrays.groups() | (self.power.groups() if self.power else {}))

    def restore(self) -> None:
        """Resume from the newest undamaged state, or start."""
        if self._load(lambda position: True) is not None:
            logger.info("resuming from step %d", self.progress.step)
            if self.ranks.first and not self.points.has_any:
                logger.warning("the points before step %d are gone: %s is new", self.progress.step, self.points.path)
        elif self.ranks.first and self.resume_states.steps():
            logger.warning("no state in %s can be used: the training begins at step 0", self.resume_states.directory)
        self.ranks.check_equal(self.arrays.replicated(), "at the start")

    def _load(self, accept: Callable[[TrainingPosition], bool]) -> TrainingPosition | None:
        """Load the newest acceptable state, the same on every rank; None where there is none."""
        # All ranks read at the same time: one that waited for another's hashes would take it for lost after `timeout_s`.
        found = self.resume_states.newest_good(accept)
        step = self.ranks.from_first(found[0].step if found else -1)
        if step < 0:
            return None
        if found is None or found[0].step != step:  # a network file system may show this rank an older listing
            found = self.resume_states.newest_good(lambda position: position.step == step)
        if found is None:
            raise RuntimeError(
                f"Rank {self.ranks.rank} does not see the state of step {step} in {self.resume_states.directory}, which the first "
                "rank resumes from. The folder must be on a file system that all nodes share."
            )
        position, groups = found
        if (position.settings, position.snapshot) != (settings_digest(self.spec), self.spec.snapshot.digest):
            raise InputError(
                f"The resumable state of step {step} in {self.resume_states.directory} belongs to another training, of another "
                f"{'snapshot' if position.snapshot != self.spec.snapshot.digest else 'configuration'}. Remove the folder to start "
                "again."
            )
        self.arrays.restore(groups, self.assembly.device)
        progress = self.progress
        progress.step, progress.updates, progress.first_loss = position.step, position.updates, position.first_loss
        progress.recent.clear()
        progress.recent.extend(position.recent)
        progress.window = [{k: math.nan if v is None else v for k, v in values.items()} for values in position.window]
        progress.rewinds, progress.skipped = position.rewinds, position.skipped
        progress.seconds = max(progress.seconds, position.seconds)  # after going back, the time is spent all the same
        progress.skipped_in_a_row = dict(position.skipped_in_a_row)
        if self.best:
            self.best.resume(position.best)
        if self.power:
            self.power.restore(groups, position.snapshots)
        return position


def _means(window: list[Values]) -> Values:
    """Means over an interval by name, each over the steps that have it; how many were skipped is counted."""
    names = dict.fromkeys(name for point in window for name in point)
    columns = {name: [point[name] for point in window if name in point] for name in names}
    counted = {f"train/{name}": sum(column) for name, column in columns.items() if name.endswith("skipped")}
    return counted | {
        f"train/{name}": sum(column) / len(column) for name, column in columns.items() if not name.endswith("skipped")
    }
