"""The parts of the check, in the order they run. Imports nothing but the standard library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        module: has `rows(setting)`, which yields the part's rows.
        title: for the table.
        limit_s: it is stopped after this time, so that a hang leaves time for the others.
    """

    module: str
    title: str
    limit_s: float


PARTS = {
    "machine": Part("tests.gpu_check.machine", "what it runs on", 60),
    "own": Part("tests.gpu_check.own", "our own parity set", 90),
    "attention": Part("tests.gpu_check.attention", "attention kernels against float64", 90),
    "steps": Part("tests.gpu_check.steps", "training steps: time, FLOPs, memory against the plan", 150),
    "training": Part("tests.gpu_check.training", "a training beside the CPU's", 120),
    "sampling": Part("tests.gpu_check.sampling", "seconds per sample", 90),
    "recorded": Part("tests.gpu_check.recorded", "recorded arrays of the published code", 180),
    "compile": Part("tests.gpu_check.compilation", "torch.compile", 150),
}
