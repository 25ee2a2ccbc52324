"""Two power-function averages beside the EMA, kept at intervals, from which `prdit ema` makes an average of another length."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from prdit_models.posthoc_ema import TRACKED_SIGMAS, gamma_of, power_update
from storage.checkpoints import Tensors, save_tensors
from storage.documents.average_snapshots import AverageSnapshot, AverageSnapshots
from tasks.train.state import arrays

FOLDER = "snapshots"


class PowerAverages:
    """The averages of a training's parameters and their snapshots in the artifact.

    Snapshots are named by update: a training that is resumed from before one writes the same file again.

    Args:
        directory: of the artifact.
        parameters: what is averaged, by name.
        every: optimiser steps between snapshots.
    """

    def __init__(self, directory: Path, parameters: dict[str, torch.nn.Parameter], every: int) -> None:
        self.directory = directory / FOLDER
        self.every = every
        self.averages = {
            sigma: {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for sigma in TRACKED_SIGMAS
        }
        self.taken: list[int] = []
        self._gammas = {sigma: gamma_of(sigma) for sigma in TRACKED_SIGMAS}

    def update(self, updates: int, parameters: Iterable[torch.Tensor]) -> bool:
        """Average in the weights after an optimiser step; returns whether a snapshot is due (`keep`)."""
        current = list(parameters)
        for sigma, average in self.averages.items():
            power_update(average.values(), current, updates, self._gammas[sigma])
        return updates % self.every == 0

    def keep(self, updates: int) -> None:
        """Write both averages at an update."""
        if updates in self.taken or updates == 0:
            return
        for sigma, tensors in self.arrays().items():
            save_tensors(self.directory / _file(updates, sigma), tensors)
        self.taken.append(updates)

    def arrays(self) -> dict[float, Tensors]:
        """Copies of the averages, by relative width."""
        return {sigma: arrays(average) for sigma, average in self.averages.items()}

    def groups(self) -> dict[str, Tensors]:
        """The same as groups of a resume state."""
        return {f"power-{sigma:g}": tensors for sigma, tensors in self.arrays().items()}

    @torch.no_grad()
    def restore(self, groups: dict[str, Tensors], taken: Sequence[int]) -> None:
        """Load a resume state."""
        for sigma, average in self.averages.items():
            for name, tensor in average.items():
                tensor.copy_(torch.from_numpy(groups[f"power-{sigma:g}"][name]))
        self.taken = list(taken)

    def write_index(self) -> None:
        """List the snapshots for `tasks.average`; files that are not listed (left by a killed run) are removed."""
        entries = [
            AverageSnapshot(file=_file(updates, sigma), updates=updates, sigma_rel=sigma)
            for updates in self.taken
            for sigma in TRACKED_SIGMAS
        ]
        known = {entry.file for entry in entries}
        for path in self.directory.glob("*.safetensors"):
            if path.name not in known:
                path.unlink()
        AverageSnapshots(snapshots=tuple(entries)).save(self.directory)


def _file(updates: int, sigma: float) -> str:
    return f"update-{updates:08d}-sigma-{sigma:.2f}.safetensors"
