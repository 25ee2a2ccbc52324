"""The launcher `local`: one node process on this machine, for one GPU, several, or none."""

import logging
import time
from dataclasses import dataclass

from tasks.run.launchers.config import LauncherConfig
from tasks.run.launchers.launcher import LOOK_S, STOP_S, Job, Watch, check_devices, write_order
from tasks.run.launchers.process import start_node, stop_node

logger = logging.getLogger("prdit.launch")


@dataclass(frozen=True)
class LocalSettings:
    """The launcher `local` has no settings."""


class LocalLauncher:
    """A subprocess of this process."""

    settings = LocalSettings

    def ranks(self, config: LauncherConfig) -> int:
        """The GPUs of this machine; 1 without."""
        return _num_gpus() or 1

    def check(self, config: LauncherConfig) -> None:
        """Refuse more ranks than GPUs."""
        check_devices(config.ranks, _num_gpus(), "this machine")

    def run(self, job: Job, config: LauncherConfig, watch: Watch) -> None:
        """As every launcher."""
        process = start_node(write_order(job, config, 1), node=0, host="127.0.0.1")
        try:
            while process.poll() is None:
                watch()
                time.sleep(LOOK_S)
        except BaseException:
            logger.warning("stopping %s (pid %d); it saves its state first", job.name, process.pid)
            stop_node(process, STOP_S)
            raise
        logger.info("%s: the node process ended with exit code %d", job.name, process.returncode)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


LAUNCHER = LocalLauncher()
