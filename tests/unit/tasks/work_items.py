"""Items for workers that cost nothing to import."""

import os
import signal
import time

from storage.errors import OutOfMemoryError


def runs_out(number: int) -> int:
    raise OutOfMemoryError("Out of memory. Set sample.batch_size=1.")


def faulty(number: int) -> int:
    raise KeyError("no such thing")


def dies(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleeps(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def num_threads(number: int) -> int:
    from tasks.model.compute import ComputeConfig, set_threads

    set_threads(ComputeConfig())
    import torch

    return torch.get_num_threads()
