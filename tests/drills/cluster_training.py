"""Real trainings on two hosts (network namespaces, Dask) and on a Slurm of two nodes, and what they end with.

`python -m tests.drills.cluster_training [PART ...]`; one JSON object on stdout. Times until a group is back are measured by
`lost_hosts` and `slurm_losses`; here it is the training that has to come out right: losses of one process with the same batches,
no more than one interval of states computed again, and on the same ranks the same bits.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from tasks.run.launchers.config import LauncherConfig
from tasks.run.stage import StageRun
from tasks.train.launch import TrainingFailedError, launch
from tasks.train.point_log import read_points
from tasks.train.spec import TrainSpec
from tests import namespaces, slurm
from tests.factories import local_config, make_data, train_spec, trained
from tests.namespaces import hosts
from tests.slurm import Slurm, slurm_cluster
from tests.unit.tasks.launchers.dask_processes import dask_cluster

EVERY = 20  # steps between states
LOSS_TOLERANCE = 1e-3  # relative: float32 sums in another order, which Adam carries on from step to step
TIMEOUT_S = 20.0
Watch = Callable[[int], None]


def run(root: Path, parts: Sequence[str] = (), steps: int = 240) -> dict[str, Any]:
    """Figures of each part that can run here.

    Args:
        root: an empty folder.
        parts: names of those to run; default: all.
        steps: of each training.
    Raises: AssertionError: a training came out differently.
    """
    figures: dict[str, Any] = {}
    world = _World(root, steps)
    if not parts or "ranks" in parts:
        figures["ranks"] = _on_other_ranks(world)
    if why := namespaces.missing():
        figures["hosts"] = {"missing": why}
    elif not parts or "hosts" in parts:
        figures["hosts"] = _on_hosts(world)
    if why := slurm.missing():
        figures["slurm"] = {"missing": why}
    elif not parts or "slurm" in parts:
        figures["slurm"] = _on_slurm(world)
    return figures


class _World:
    """Data, the training, and what it ends with undisturbed in one process."""

    def __init__(self, root: Path, steps: int) -> None:
        self.root = root
        self.data = make_data(root)
        self.config = local_config(
            steps=steps, batch_size=4, val_every=steps, checkpoint_every=EVERY, log_every=1, lr=1e-4
        )
        self.alone = trained(self.spec("alone"))

    def spec(self, name: str) -> TrainSpec:
        return train_spec(self.config, *self.data, self.root / name)

    def train(self, name: str, launcher: LauncherConfig, watch: Watch = lambda step: None) -> "_Trained":
        spec = self.spec(name)
        ref = launch(spec, StageRun(spec.directory, None, "", {}), lambda done, total: watch(done), launcher)
        return _Trained(spec, ref)

    def gaps(self, made: "_Trained") -> dict[str, float]:
        """How far losses and weights are from those of one process; the losses must be within the tolerance."""
        ours, theirs = (_losses(path) for path in (made.ref.path, self.alone.path))
        assert ours.keys() == theirs.keys()
        loss = max(abs(ours[step] / theirs[step] - 1.0) for step in ours)
        assert loss < LOSS_TOLERANCE, f"losses differ by {loss:.1e}"
        a, b = (load_tensors(path / "model.safetensors") for path in (made.ref.path, self.alone.path))
        return {
            "loss_gap": float(f"{loss:.1e}"),
            "weight_gap": float(f"{max(np.abs(a[key] - b[key]).max() for key in a):.1e}"),
        }


class _Trained:
    def __init__(self, spec: TrainSpec, ref: Ref) -> None:
        self.ref = ref
        self.log = "".join(path.read_text() for path in sorted((spec.directory / "work").glob("node-*.log")))

    @property
    def resumed(self) -> list[int]:
        """Steps from which the first rank went on."""
        return [int(step) for step in re.findall(r"\[rank 0\].* resuming from step (\d+)", self.log)]


def _losses(folder: Path) -> dict[int, float]:
    return {
        point["step"]: point["train/loss"] for point in read_points(folder / "metrics.jsonl") if "train/loss" in point
    }


# -- other numbers of ranks ------------------------------------------------------------------------------------------------


def _on_other_ranks(world: _World) -> dict[str, Any]:
    """One rank, then two, then one again: the same batches, so the same losses."""
    stopped: list[int] = []
    for ranks, until in ((1, world.config.steps // 3), (2, 2 * world.config.steps // 3)):

        def stop(step: int, until: int = until) -> None:
            if step >= until:
                stopped.append(step)
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            world.train("ranks", LauncherConfig(ranks_per_node=ranks), stop)
    made = world.train("ranks", LauncherConfig(ranks_per_node=1))
    assert len(made.resumed) == 2, made.resumed
    return {"stopped_at": stopped, "resumed_from": made.resumed, **world.gaps(made)}


# -- two hosts -------------------------------------------------------------------------------------------------------------


def _on_hosts(world: _World) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with hosts(2) as (here, pair):
        addresses, prefixes = [host.address for host in pair], [host.prefix for host in pair]
        folder = world.root / "dask"
        folder.mkdir()
        with dask_cluster(folder, addresses, prefixes, here) as cluster:
            launcher = LauncherConfig(
                name="dask",
                nodes=2,
                min_nodes=1,
                ranks_per_node=2,
                timeout_s=TIMEOUT_S,
                settings={"scheduler": cluster.address},
            )
            figures["undisturbed"] = world.gaps(world.train("hosts", launcher))
            seen: dict[str, int] = {}

            def lose(step: int) -> None:
                if step > 30 and "rank" not in seen:
                    _ranks(world.root / "lost")[-1].kill()
                    seen["rank"] = step
                elif "rank" in seen and step > seen["rank"] + 40 and "host" not in seen:
                    pair[1].cut()
                    seen["host"] = step
                elif "host" in seen and step > seen["host"] + 40 and "back" not in seen:
                    pair[1].join()
                    seen["back"] = step

            made = world.train("lost", launcher, lose)
            _check_nothing_lost(made, [seen["rank"], seen["host"]])
            figures["rank killed, host cut off and back"] = {
                **world.gaps(made),
                "at": seen,
                "resumed_from": made.resumed,
            }
    return figures


def _check_nothing_lost(made: _Trained, losses: list[int]) -> None:
    """After each loss the training went on from a state at most one interval (and the step under way) before it."""
    for step, resumed in zip(losses, made.resumed, strict=False):
        assert resumed >= step - EVERY - 1, f"lost at step {step}, went on from {resumed}"


# -- Slurm -----------------------------------------------------------------------------------------------------------------


def _on_slurm(world: _World) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    folder = world.root / "slurm"
    folder.mkdir()
    with slurm_cluster(folder) as cluster:
        fixed = LauncherConfig(name="slurm", nodes=2, timeout_s=TIMEOUT_S)
        whole = world.train("slurm-whole", fixed)
        figures["undisturbed"] = world.gaps(whole)
        limited = LauncherConfig(
            name="slurm", nodes=2, timeout_s=TIMEOUT_S, settings={"time_limit": "1", "signal_s": 50}
        )
        made = world.train("slurm-limit", limited)
        figures["time limit, requeued"] = {
            "resumed_from": made.resumed,
            "same_bits": made.ref.digest == whole.ref.digest,
        }
        cluster.await_idle()
        made, step = _with_a_node_down(world, cluster, "slurm-down", fixed)
        figures["node DOWN, requeued"] = {
            "at": step,
            "resumed_from": made.resumed,
            "same_bits": made.ref.digest == whole.ref.digest,
        }
        cluster.await_idle()
        elastic = LauncherConfig(name="slurm", nodes=2, min_nodes=1, timeout_s=TIMEOUT_S)
        made, step = _with_a_node_down(world, cluster, "slurm-elastic", elastic)
        figures["node DOWN, goes on with one"] = {"at": step, "resumed_from": made.resumed, **world.gaps(made)}
        cluster.await_idle()
        figures["scancel"] = _cancelled(world, cluster, fixed, whole)
    assert all(part.get("same_bits", True) for part in figures.values()), figures
    return figures


def _with_a_node_down(world: _World, cluster: Slurm, name: str, launcher: LauncherConfig) -> tuple[_Trained, int]:
    lost: list[int] = []

    def lose(step: int) -> None:
        if step > 50 and not lost:
            cluster.set_down("n2")
            lost.append(step)

    made = world.train(name, launcher, lose)
    _check_nothing_lost(made, lost)
    return made, lost[0]


def _cancelled(world: _World, cluster: Slurm, launcher: LauncherConfig, whole: _Trained) -> dict[str, Any]:
    """`scancel` has the ranks save and ends the run; the next one goes on."""
    stopped: list[int] = []

    def cancel(step: int) -> None:
        if step > 50 and not stopped:
            for job in cluster.jobs():
                cluster.command("scancel", job.split()[0])
            stopped.append(step)

    try:
        world.train("slurm-cancelled", launcher, cancel)
    except (TrainingFailedError, RuntimeError) as error:
        said = str(error).splitlines()[0]
    else:
        raise AssertionError("a cancelled job did not end the run")
    cluster.await_idle()
    made = world.train("slurm-cancelled", launcher)
    _check_nothing_lost(made, stopped)
    return {
        "at": stopped[0],
        "resumed_from": made.resumed,
        "said": said[:120],
        "same_bits": made.ref.digest == whole.ref.digest,
    }


def _ranks(folder: Path) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [
        p for p in found if "tasks.train" in (p.info["cmdline"] or ()) and str(folder) in " ".join(p.info["cmdline"])
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(json.dumps(run(Path(scratch), sys.argv[1:])) + "\n")
