"""What becomes of a volume that was drawn: its verdict, then committed, drawn again, or left out."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prdit_models.metrics.anatomy import MASK_MM, anatomy, failures
from storage.documents.samples import Excluded, Verdict
from storage.exports.nifti import GENERATED, write_nifti
from storage.geometry import Volume
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import CheckpointInfo
from tasks.sample.config import RedrawConfig
from tasks.sample.draw import Drawing, volume_id

NIFTI = "nifti"  # folder beside the store
WHOLE_CHEST_MM = 240.0  # the smallest box in which the limits were found to hold (docs/anatomy.md)
_INT16 = np.iinfo(np.int16)


def judged(info: CheckpointInfo, redraw: RedrawConfig) -> bool:
    """Whether volumes are judged by their anatomy."""
    if redraw.anatomy is not None:
        return redraw.anatomy
    edge_mm = info.voxel_mm * info.view.size
    return edge_mm >= WHOLE_CHEST_MM and info.voxel_mm <= MASK_MM and not info.window.follows_scan


def nifti_path(store: Path, index: int) -> Path:
    """Where a volume is as NIfTI."""
    return store.parent / NIFTI / f"{index}.nii.gz"


@dataclass(frozen=True)
class Candidate:
    """A volume that is finite.

    Attributes:
        volume: int16 HU.
        facts: for its record: index, seed, shares of voxels.
        verdict: on its anatomy.
    """

    volume: Volume
    facts: dict[str, Any]
    verdict: Verdict


@dataclass(frozen=True)
class Attempt:
    """A drawing of a volume.

    Attributes:
        index: of the volume.
        tried: how often it has been drawn before.
        kept: the last of these that was finite.
    """

    index: int
    tried: int = 0
    kept: Candidate | None = None


class Settler(AbstractContextManager["Settler"]):
    """A thread that judges and writes volumes while the next ones are drawn. Whoever gives it some waits for those before.

    Args:
        drawing: from what they are.
        info: of the checkpoint.

    Attributes:
        excluded: volumes that were not finite in any of their drawings.
    """

    def __init__(self, drawing: Drawing, info: CheckpointInfo) -> None:
        self.excluded: list[Excluded] = []
        self._drawing, self._info = drawing, info
        self._judged = judged(info, drawing.config.redraw)
        self._store = VolumeStore.open(drawing.store)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prdit-write")

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # what is drawn is written, whatever ends the drawing

    def missing(self, index: int) -> bool:
        """Whether a volume is not committed yet."""
        return not self._store.record_path(volume_id(index)).exists()

    def settle(self, attempts: Sequence[Attempt], drawn: NDArray[np.float32]) -> "Future[list[Attempt]]":
        """Judge and write volumes in model range, shape (n, S, S, S); the result is what must be drawn next."""
        return self._thread.submit(self._settled, attempts, drawn)

    def _settled(self, attempts: Sequence[Attempt], drawn: NDArray[np.float32]) -> list[Attempt]:
        again = []
        for attempt, x in zip(attempts, drawn, strict=True):
            bad = int(x.size - np.isfinite(x).sum())
            found = None if bad else self._candidate(attempt, x)
            best = found or attempt.kept
            good = found is not None and found.verdict.plausible is not False
            if not good and attempt.tried < self._drawing.config.redraw.most:
                again.append(Attempt(attempt.index, attempt.tried + 1, best))
            elif best is not None:
                if self.missing(attempt.index):
                    self._commit(attempt, best)
            else:
                self.excluded.append(self._exclusion(attempt, bad, x.size))
        return again

    def _candidate(self, attempt: Attempt, x: NDArray[np.float32]) -> Candidate:
        """One volume (S, S, S) from model range to int16 HU, with its verdict and what was clipped."""
        info = self._info
        if info.axes == "xyz":
            x = x.transpose(2, 1, 0)
        hu = info.window.to_hu(x)
        rounded = np.rint(hu)
        outside = (hu < info.window.lower_hu) | (hu > info.window.upper_hu)
        origin = self._drawing.origin_mm(info)
        volume = Volume(np.clip(rounded, _INT16.min, _INT16.max).astype(np.int16), (info.voxel_mm,) * 3, origin)
        facts = {
            "index": attempt.index,
            "seed": self._drawing.seed(attempt.index, attempt.tried),
            "clipped_fraction": float(((rounded < _INT16.min) | (rounded > _INT16.max)).mean()),
            "outside_window_fraction": float(outside.mean()),
        }
        return Candidate(volume, facts, self._verdict(volume))

    def _verdict(self, volume: Volume) -> Verdict:
        if not self._judged:
            return Verdict()
        window = self._info.window
        seen = np.clip(volume.hu.astype(np.float32), window.lower_hu, window.upper_hu)  # as an evaluation sees it
        found = anatomy(seen, self._info.voxel_mm)
        failed = failures(found, self._info.voxel_mm)
        figures = {name: None if value is None else float(f"{value:.6g}") for name, value in found.items()}
        return Verdict(plausible=not failed, failed=failed, figures=figures)

    def _commit(self, attempt: Attempt, chosen: Candidate) -> None:
        if self._drawing.config.nifti:  # first, so that each volume that is committed has one
            write_nifti(nifti_path(self._drawing.store, attempt.index), chosen.volume, GENERATED)
        facts = chosen.facts | {"verdict": chosen.verdict.model_dump(), "tries": attempt.tried + 1}
        self._store.write(chosen.volume, volume_id=volume_id(attempt.index), attributes=facts)

    def _exclusion(self, attempt: Attempt, bad: int, size: int) -> Excluded:
        seed, tries = self._drawing.seed(attempt.index, attempt.tried), attempt.tried + 1
        drawings = "its drawing" if tries == 1 else f"the last of its {tries} drawings, none of which was finite"
        sentence = f"{bad} of {size} voxels are not finite in {drawings}"
        return Excluded(index=attempt.index, seed=seed, tries=tries, reason="not_finite", sentence=sentence)
