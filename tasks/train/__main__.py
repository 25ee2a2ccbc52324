"""One rank of a training: `python -m tasks.train SPEC.json TOKEN`, started by torchrun on every node.

How it ended is written into the folder that all ranks share. Then, and also when it was refused, the rank ends with 0; another exit
code is a failure, after which torchrun starts the group again and it resumes.
"""

import errno
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from storage import lease
from storage.artifacts import SCRATCH, Ref, commit_artifact
from storage.documents.provenance import Cost
from storage.errors import LeaseHeldError, LeaseLostError, UserError
from storage.files import remove_leftovers
from tasks.run.launchers.rank import STOP_SIGNALS, parent_pid
from tasks.run.printable import log_printable
from tasks.train.spec import Outcome, Refusal, TrainSpec

_GRACE_S = 60.0  # for the step under way and the state's write; then the process ends regardless
_LOOK_S = 1.0
_FILE_SERVER = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # what a file server in trouble gives, and may not give again
logger = logging.getLogger("prdit.train")


class _Stop:
    """Whether this rank was asked to stop; called by signals. A second one would find an Event locked."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: object) -> None:
        self.asked = True


def main(spec_path: Path, token: int) -> int:
    """Run one rank; returns the exit code."""
    rank = os.environ.get("RANK", "0")
    log_printable(f"%(asctime)s %(levelname)s [rank {rank}] %(name)s: %(message)s", short=False)
    stop = _Stop()
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    threading.Thread(target=_watch_parent, args=(parent_pid(), stop), daemon=True).start()
    spec = TrainSpec.model_validate_json(spec_path.read_text(encoding="utf-8"))
    scratch = spec.directory / SCRATCH
    ended = Outcome.find(scratch, token)
    if ended is not None and ended.stopped_at is None:
        return 0  # another rank has ended this launch, and the group was started again
    # After the watch has started: these imports take seconds, or minutes from a file server.
    from tasks.train.loop import Stopped

    try:
        outcome = _train(spec, token, partial(lease.guard, scratch, token), stop)
    except Stopped as stopped:
        logger.warning("%s", stopped)
        outcome = Outcome(stopped_at=stopped.step) if rank == "0" else None  # who has written the state
    except LeaseLostError as error:
        logger.error("%s", error)
        return 0
    except UserError as error:
        logger.error("%s", error, exc_info=True)
        if isinstance(error, LeaseHeldError) or getattr(error, "errno", None) in _FILE_SERVER:
            return 1
        outcome = Outcome(refusal=Refusal.of(error))
    except (RuntimeError, OSError):  # another rank was lost, or a device: the group may start again
        logger.exception("the training failed")
        return 1
    except Exception as error:
        logger.exception("the training failed")
        outcome = Outcome(fault=type(error).__name__)
    if outcome is not None:
        try:
            with lease.guard(scratch, token):
                outcome.save(scratch, token)
        except LeaseLostError as error:
            logger.error("%s", error)
    return 0


def _train(spec: TrainSpec, token: int, guard: lease.Guard, stop: _Stop) -> Outcome | None:
    """Run the training to its end; the first rank commits what it made, the others return None."""
    from tasks.model.compute import pick_device
    from tasks.model.memory import out_of_memory_explained
    from tasks.train.check import check_training
    from tasks.train.loop import Training
    from tasks.train.ranks import Ranks
    from tasks.train.setup import advice, assemble, check_memory

    ranks = Ranks.of_environment()
    device = pick_device(spec.config, ranks.local_rank, ranks.local_world)
    beginning = check_training(spec.snapshot, spec.split, spec.start, spec.config, spec.initial)
    info = beginning.info
    name = spec.stage.removeprefix("train-")
    check_memory(name, info, spec.config, ranks, device)
    with out_of_memory_explained(device, partial(advice, name, info, spec.config, ranks)):
        ranks.join(device)
        if ranks.first:
            with guard():
                remove_leftovers(spec.directory / SCRATCH, below=True)
                Outcome.forget_stop(spec.directory / SCRATCH, token)
        training = Training(assemble(spec, ranks, beginning), spec, ranks, guard)
        training.run(lambda: stop.asked)
        if not ranks.first:
            return None
        with guard():
            return Outcome(ref=_commit(spec, training.cost()))


def _commit(spec: TrainSpec, cost: Cost | None = None) -> Ref:
    provenance = dict(spec.provenance)
    if cost is not None:
        provenance["extra"] = {**provenance.get("extra", {}), "cost": cost}
    inputs = {role: Ref.model_validate(value) for role, value in provenance.pop("inputs").items()}
    return commit_artifact(spec.directory, "checkpoint", inputs=inputs, **provenance)


def _watch_parent(parent: int, stop: _Stop) -> None:
    """Wait until torchrun on this node has ended, then ask the training to stop; end the process after the grace period."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    stop()
    time.sleep(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python -m tasks.train SPEC.json TOKEN\n")
        sys.exit(2)
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # without destructors of native libraries, see `Ranks.join`
