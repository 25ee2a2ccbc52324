"""Ranks that count steps together, and tell by files what happens to them: `python -m … FOLDER STEPS [TALK]`.

Every step is a collective operation, and step and stop are agreed on. FOLDER gets `started-<rank>-<pid>` with a rank's environment,
`step` (rank 0, every step), `saved-<rank>` with the step at which it was stopped, `done-<rank>` with the last step and the world.
TALK is how many characters a rank writes per step. One rank alone does not import torch.
"""

import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

SHOWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "PRDIT_WORLD", "PRDIT_COLLECTIVE_TIMEOUT_S", "OMP_NUM_THREADS")


def main(folder: Path, steps: int, talk: int) -> None:
    # No threading.Event: a second signal within its `set` (scancel sends one, the agent another) would wait for the first for ever.
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: stop.append(number))
    threading.Thread(target=_watch_parent, args=(os.getppid(), stop), daemon=True).start()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    stdin = "empty" if not os.read(0, 1) else "open"
    shown = {name: os.environ.get(name) for name in SHOWN} | {"stdin": stdin, "parent": os.getppid(), "at": time.time()}
    (folder / f"started-{rank}-{os.getpid()}").write_text(json.dumps(shown))
    together = _Together(world)
    step_file = folder / "step"
    first = together.sums(int(step_file.read_text()) if rank == 0 and step_file.exists() else 0)[0]
    for step in range(first + 1, steps + 1):
        sys.stdout.write("x" * talk)
        time.sleep(0.05)
        total, stopped = together.sums(step, int(bool(stop)))
        assert total == step * world, (step, total)
        if stopped:
            (folder / f"saved-{rank}").write_text(str(step))
            break
        if rank == 0:
            _replace(step_file, str(step))
    else:
        _replace(folder / f"done-{rank}", json.dumps([steps, world]))
    together.end()


class _Together:
    """Sums of integers over all ranks."""

    def __init__(self, world: int) -> None:
        self.world = world
        if world > 1:
            from torch import distributed

            timeout = timedelta(seconds=float(os.environ["PRDIT_COLLECTIVE_TIMEOUT_S"]))
            distributed.init_process_group("gloo", timeout=timeout)

    def end(self) -> None:
        """Without it gloo's threads abort the process now and then."""
        if self.world > 1:
            from torch import distributed

            distributed.destroy_process_group()

    def sums(self, *values: int) -> list[int]:
        if self.world == 1:
            return list(values)
        import torch
        from torch import distributed

        state = torch.tensor(values)
        distributed.all_reduce(state)
        return [int(value) for value in state]


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}-{os.getpid()}.new")
    temporary.write_text(text)
    temporary.replace(path)


def _watch_parent(parent: int, stop: list[int]) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    stop.append(0)
    time.sleep(30)  # for the step under way, and to save: ranks that wait for a lost host never come to it
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
