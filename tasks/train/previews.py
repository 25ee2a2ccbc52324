"""Volumes drawn while a training goes on, as pictures that are compared from step to step."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prdit_models.conditions import Conditions
from prdit_models.families.family import Request, first_drawing
from storage.files import replacing
from storage.geometry import Volume
from storage.lease import Guard
from tasks.model.conditions import VOXEL_MM, encoded
from tasks.model.slices import draw_volumes, png_bytes
from tasks.train.ranks import Ranks
from tasks.train.setup import Assembly
from tasks.train.state import TrainedArrays
from tasks.train.validation import averaged

_VOLUMES = 4
_STEPS = 25  # of the default sampler: enough to see an anatomy
_SEED = 0


class Previews:
    """Pictures of volumes from fixed seeds by the average of the weights.

    Args:
        assembly: what is trained.
        arrays: its weights and their average.
        folder: where the pictures go.
        ranks: each draws its share, so that none waits for long.
        guard: entered around what is written.
    """

    def __init__(
        self,
        assembly: Assembly,
        arrays: TrainedArrays,
        folder: Path,
        ranks: Ranks,
        guard: Guard = nullcontext,
    ) -> None:
        self._assembly = assembly
        self._arrays = arrays
        self._folder = folder
        self._ranks = ranks
        self._guard = guard
        self._request = _request(assembly)

    def draw(self, step: int) -> None:
        """Write `step-XXXXXXXX.png`; nothing for a family that draws no volumes."""
        if self._request is None:
            return
        path, info = self._folder / f"step-{step:08d}.png", self._assembly.info
        each = -(-_VOLUMES // self._ranks.world)
        seeds = range(self._ranks.rank * each, (self._ranks.rank + 1) * each)
        drawn = self._ranks.gathered(self._drawn(self._request, seeds))[:_VOLUMES, 0]
        if not self._ranks.first or path.exists():
            return
        if info.axes == "xyz":
            drawn = drawn.permute(0, 3, 2, 1)
        hu = np.rint(info.window.to_hu(drawn.numpy())).clip(-1024, 3071).astype(np.int16)
        half = info.voxel_mm * (hu.shape[1] - 1) / 2
        picture = png_bytes(draw_volumes([Volume(one, (info.voxel_mm,) * 3, (-half,) * 3) for one in hu]))
        with self._guard(), replacing(path) as temporary:
            temporary.write_bytes(picture)

    @torch.no_grad()
    def _drawn(self, request: Request, seeds: range) -> Tensor:
        """Volumes of some seeds, model range, shape (n, 1, S, S, S)."""
        assembly, module = self._assembly, self._assembly.module
        generators = [torch.Generator().manual_seed(_SEED + seed) for seed in seeds]
        module.eval()
        with averaged(self._arrays):
            drawn = assembly.family.generate(module, assembly.info.process, request, generators)
        module.train()
        return drawn.float()


def _request(assembly: Assembly) -> Request | None:
    """How to draw; None for a family that draws no volumes."""
    info, samplers = assembly.info, ("predictor-corrector", "euler", "ddim")
    found = first_drawing(assembly.family, info.model, info.process, samplers, _STEPS)
    if found is None or len(info.view.edges) == 1:
        return found
    values = torch.tensor(
        [encoded(info.conditions, {VOXEL_MM: info.voxel_mm})]
    )  # the voxel distance that pictures show
    return replace(found, conditions=Conditions(values=values))
