"""The training subprocess: `python -m tasks.train SPEC.json` prints one line: the checkpoint's reference, or why it refuses.

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
from pathlib import Path

from storage.artifacts import SCRATCH, Ref, commit_artifact
from storage.errors import UserError
from storage.files import remove_leftovers
from storage.locks import locked
from tasks.train.spec import EXIT_REFUSED, EXIT_STOPPED, TRAINER_LOCK, Refusal, TrainSpec

_GRACE_S = 60.0  # for the step under way and the state's write; then the process ends regardless
_LOCK_WAIT_S = 90.0
logger = logging.getLogger("prdit.train")


def main(spec_path: Path) -> int:
    """Run one training; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    spec = TrainSpec.model_validate_json(spec_path.read_text(encoding="utf-8"))
    # Heavy imports after the watch has started: a parent killed while torch loads must not leave an orphaned trainer.
    from tasks.train.loop import Stopped, Training
    from tasks.train.setup import assemble

    scratch = spec.directory / SCRATCH
    try:
        with locked(
            scratch / TRAINER_LOCK, timeout_s=_LOCK_WAIT_S
        ):  # an orphaned trainer may still be saving its state
            remove_leftovers(scratch, below=True)
            Training(assemble(spec), spec).run(stop.is_set)
            answer, code = _commit(spec).model_dump_json(), 0
    except Stopped as stopped:
        logger.warning("%s", stopped)
        return EXIT_STOPPED
    except (ValueError, UserError) as error:
        logger.error("%s", error)
        answer, code = Refusal(error=type(error).__name__, message=str(error)).model_dump_json(), EXIT_REFUSED
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()
    return code


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
