"""What `prdit doctor --config NAME` looks at for a configuration that computes on several devices or hosts."""

from pathlib import Path

import psutil

from flows.config import PipelineConfig
from flows.doctor import Check
from tasks.run.clusters import RunnerError
from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import LAUNCHERS, LauncherError
from tasks.run.runners import Runner

# File systems that several hosts can have mounted at once, by the names that Linux gives them.
_SHARED = frozenset(
    [
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "glusterfs",
        "wekafs",
        "panfs",
        "pvfs2",
        "afs",
        "cifs",
        "smb3",
        "virtiofs",
        "9p",
        "fuse.ceph",
        "fuse.glusterfs",
        "fuse.sshfs",
        "fuse.juicefs",
        "fuse.gpfs",
    ]
)


def check_cluster(config: PipelineConfig) -> list[Check]:
    """Whether the configured launcher and runner could start now, and whether other hosts would see the folder of the stages."""
    findings = [check_launcher(config.launcher), check_runner(config.runner)]
    if config.launcher.nodes > 1 or config.runner.on_this_machine(one_thread=True) is None:
        findings.append(check_shared(Path(config.workdir)))
    return findings


def check_launcher(config: LauncherConfig) -> Check:
    """The launcher's own check."""
    name = f"launcher {config.name}"
    try:
        fewest, most = config.world
        LAUNCHERS[config.name].check(config)
    except LauncherError as error:
        return Check(name=name, status="fail", detail=error.detail, remedy=error.remedy)
    ranks = f"{fewest} to {most}" if fewest < most else f"{most}"
    nodes = f"{config.nodes} node{'s' if config.nodes > 1 else ''}"
    return Check(name=name, status="ok", detail=f"could start {ranks} rank{'s' if most > 1 else ''} on {nodes}")


def check_runner(runner: Runner) -> Check:
    """The runner's own check."""
    name = f"runner {runner.name}"
    try:
        runner.check()
    except RunnerError as error:
        return Check(name=name, status="fail", detail=str(error))
    return Check(name=name, status="ok", detail="could start")


def check_shared(workdir: Path) -> Check:
    """Whether the folder of the stages is on a file system that other hosts can have mounted, too."""
    there = next(path for path in [workdir.resolve(), *workdir.resolve().parents] if path.exists())
    mounts = [part for part in psutil.disk_partitions(all=True) if there.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
    detail = f"{there} is on a file system of type {kind}"
    if kind in _SHARED:
        return Check(name="shared folder", status="ok", detail=detail)
    remedy = "other hosts must see workdir at the same path: set it to a folder on NFS, Lustre, GPFS or the like"
    return Check(name="shared folder", status="warn", detail=f"{detail}, which is of this machine alone", remedy=remedy)
