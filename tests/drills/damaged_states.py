"""Damage the newest state of a stopped training in every way: resume names the file and goes on from the state before.

Every damage is met by the code that a resumed training starts with; some are trained to the end, which must give the files of an
undisturbed training. Disks are small real file systems.
"""

import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Ref, artifact_files
from storage.checkpoints import ResumeStates
from storage.errors import UnwritableError
from tasks.run.stage import StageRun
from tasks.train.launch import launch
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tasks.train.spec import RESUME_STATES, TrainSpec
from tests.factories import local_config, make_data, train_spec
from tests.unit.disks import fill, small_disk

_TRUNCATIONS, _FLIPS = 20, 200
_STOPPED_AT = 25  # of 30 steps, with a state every 10
_CONFIG = local_config(preset="XS/4/0", steps=30, val_every=10, checkpoint_every=10, log_every=5)
Damage = Callable[[Path], Path]  # of a state's folder; returns the file that was damaged


def run(root: Path, rounds: int) -> dict[str, Any]:
    """Figures of what was found; `rounds` damages of each kind are trained to the end.

    Raises: AssertionError: a damage was not noticed, not named, or changed what the training made.
    """
    data = make_data(root / "data")
    whole = train_spec(_CONFIG, *data, root / "whole")
    _train(whole)
    expected = artifact_files(whole.directory)
    stopped = train_spec(_CONFIG, *data, root / "stopped")
    _train(stopped, stop_at=_STOPPED_AT)
    chance = random.Random(7)
    kinds = {"truncated": (_TRUNCATIONS, _truncate), "bit flipped": (_FLIPS, _flip), "lost": (5, _lose)}
    found: dict[str, Any] = {"rounds": rounds}
    for what, (count, damage) in kinds.items():
        began = time.monotonic()
        files = _resumed_after(stopped, [damage(chance, number / count) for number in range(count)])
        for number in range(rounds):
            _finished_after(stopped, damage(chance, chance.random()), root / f"{what} {number}", expected)
        found[what] = {"damages": count, "by_file": files, "seconds": round(time.monotonic() - began, 1)}
    for name, drill in {"full disk": _full_disk, "TMPDIR": _temporary_folder_elsewhere}.items():
        try:
            found[name] = drill(root / name, data, expected)
        except pytest.skip.Exception as reason:
            found[name] = f"skipped: {reason}"
    return found


# ---- damages ---------------------------------------------------------------------------------------------------------


def _truncate(chance: random.Random, share: float) -> Damage:
    def damage(folder: Path) -> Path:
        path = _file(folder, chance)
        os.truncate(path, int(share * path.stat().st_size))
        return path

    return damage


def _flip(chance: random.Random, share: float) -> Damage:
    def damage(folder: Path) -> Path:
        path = _file(folder, chance)
        content = bytearray(path.read_bytes())
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(content))
        return path

    return damage


def _lose(chance: random.Random, share: float) -> Damage:
    def damage(folder: Path) -> Path:
        path = sorted(folder.iterdir())[int(share * 5)]
        path.unlink()
        return path

    return damage


def _file(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.iterdir()))


# ---- what a training does with them ----------------------------------------------------------------------------------


def _train(spec: TrainSpec, *, stop_at: int | None = None) -> None:
    training = Training(assemble(spec), spec)
    with suppress(Stopped):
        training.run(lambda: training.progress.step == stop_at)
    assert training.progress.step == (stop_at or spec.config.steps)


def _resumed_after(spec: TrainSpec, damages: list[Damage]) -> dict[str, int]:
    """Let one training restore its state after each damage of the newest one; how often each file was damaged."""
    checkpoints = spec.directory / "work" / RESUME_STATES
    newest = f"step-{_STOPPED_AT:08d}"
    training = Training(assemble(spec), spec)
    count: dict[str, int] = {}
    for damage in damages:
        spare = checkpoints.parent / "spare"
        shutil.copytree(checkpoints / newest, spare)
        path = damage(checkpoints / newest)
        with _warnings() as lines:
            training.restore()
        assert training.progress.step == 20, (path, training.progress.step)
        assert len(lines) == 1, lines
        assert str(path) in lines[0], (path, lines)
        assert str(checkpoints / newest) in lines[0]
        count[path.name] = count.get(path.name, 0) + 1
        shutil.rmtree(checkpoints / newest)
        spare.rename(checkpoints / newest)
    found = ResumeStates(checkpoints).newest_verified()
    assert found is not None
    assert found[0].name == newest
    return dict(sorted(count.items()))


def _finished_after(spec: TrainSpec, damage: Damage, directory: Path, expected: dict[str, str]) -> None:
    """Train a copy of a stopped training to its end, its newest state damaged."""
    shutil.copytree(spec.directory, directory)
    copy = spec.model_copy(update={"directory": directory})
    path = damage(directory / "work" / RESUME_STATES / f"step-{_STOPPED_AT:08d}")
    with _warnings() as lines:
        _train(copy)
    assert any(str(path) in line for line in lines), lines
    assert artifact_files(directory) == expected, path
    shutil.rmtree(directory)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is said of damaged states within the block."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("prdit.checkpoints")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


# ---- disks -----------------------------------------------------------------------------------------------------------


def _full_disk(folder: Path, data: tuple[Ref, Ref], expected: dict[str, str]) -> dict[str, Any]:
    """A training whose disk fills up says so, leaves nothing half, and goes on from its last state once there is room."""
    with small_disk(folder, 32 * 1024) as disk:
        spec = train_spec(_CONFIG, *data, disk / "stage")
        _train(spec, stop_at=11)
        checkpoints = spec.directory / "work" / RESUME_STATES
        kept = sorted(path.name for path in checkpoints.iterdir())
        filler = fill(disk, leave_kib=64)
        try:
            _train(spec)
        except UnwritableError as error:
            said = str(error)
        else:
            raise AssertionError("nothing was said of a full disk")
        assert "no space is left" in said
        assert sorted(path.name for path in checkpoints.iterdir()) == kept
        filler.unlink()
        _train(spec)
        assert artifact_files(spec.directory) == expected
        return {"kept": kept, "said": said.replace(str(disk), "DISK")}


def _temporary_folder_elsewhere(folder: Path, data: tuple[Ref, Ref], expected: dict[str, str]) -> dict[str, Any]:
    """A launched training whose $TMPDIR is another file system."""
    folder.mkdir()
    with small_disk(folder / "tmp", 16 * 1024) as disk, pytest.MonkeyPatch.context() as patch:
        assert disk.stat().st_dev != folder.stat().st_dev
        patch.setenv("TMPDIR", str(disk))
        spec = train_spec(_CONFIG, *data, folder / "stage")
        launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: None)
        assert artifact_files(spec.directory) == expected
        return {"file_systems": 2}
