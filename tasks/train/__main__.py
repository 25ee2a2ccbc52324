"""The training subprocess: `python -m tasks.train SPEC.json` ends its output with the checkpoint's reference, or with a refusal.

It ends with its parent: standard input is a pipe that the parent holds open. End of file (the parent ended, for whatever
reason) asks the training to save and stop, and ends the process if that takes too long.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from storage.artifacts import SCRATCH, Ref, commit_artifact
from storage.errors import UserError
from storage.files import remove_leftovers
from storage.locks import locked
from tasks.run.printable import log_printable
from tasks.train.spec import EXIT_FAILED, EXIT_REFUSED, EXIT_STOPPED, TRAINER_LOCK, Refusal, TrainSpec

_GRACE_S = 60.0  # for the step under way and the state's write; then the process ends regardless
_LOCK_WAIT_S = 90.0
logger = logging.getLogger("prdit.train")


def main(spec_path: Path) -> int:
    """Run one training; returns the exit code."""
    log_printable("%(asctime)s %(levelname)s %(name)s: %(message)s", short=False)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    spec = TrainSpec.model_validate_json(spec_path.read_text(encoding="utf-8"))
    # Heavy imports after the watch has started: a parent killed while torch loads must not leave an orphaned trainer.
    from tasks.train.loop import Stopped

    scratch = spec.directory / SCRATCH
    try:
        # An orphaned trainer may still be saving its state.
        with locked(scratch / TRAINER_LOCK, timeout_s=_LOCK_WAIT_S):
            remove_leftovers(scratch, below=True)
            answer, code = _train(spec, stop).model_dump_json(), 0
    except Stopped as stopped:
        logger.warning("%s", stopped)
        return EXIT_STOPPED
    except UserError as error:
        logger.error("%s", error, exc_info=True)
        answer, code = Refusal.of(error).model_dump_json(), EXIT_REFUSED
    except Exception:
        logger.exception("the training failed")
        return EXIT_FAILED
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()
    return code


def _train(spec: TrainSpec, stop: threading.Event) -> Ref:
    """Run the training to its end and commit what it made."""
    from tasks.model.compute import pick_device
    from tasks.model.memory import out_of_memory_explained
    from tasks.train.loop import Training
    from tasks.train.setup import advice, assemble

    with out_of_memory_explained(pick_device(spec.config), partial(advice, spec)):
        training = Training(assemble(spec), spec)
        training.run(stop.is_set)
    return _commit(spec)


def _commit(spec: TrainSpec) -> Ref:
    provenance = dict(spec.provenance)
    inputs = {role: Ref.model_validate(value) for role, value in provenance.pop("inputs").items()}
    return commit_artifact(spec.directory, "checkpoint", inputs=inputs, **provenance)


def _watch_parent(stop: threading.Event) -> None:
    """Block until standard input ends, then ask the training to stop; end the process after the grace period."""
    while os.read(0, 4096):
        continue
    stop.set()
    time.sleep(_GRACE_S)
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.stderr.write(json.dumps({"error": "usage: python -m tasks.train SPEC.json"}) + "\n")
        sys.exit(2)
    sys.exit(main(Path(sys.argv[1])))
