"""torchrun as a library: the agent that starts the ranks of one node, starts them again, and meets those of other nodes.

Source: torch.distributed.elastic of PyTorch 2.13 (`torch/distributed/launcher/api.py` wires the same parts for `torchrun`). What is
different here: node 0 hosts the store at a port that the system chooses; a rank's environment has no store of the agent; a
node that waits to join is noticed although all ranks have ended; ranks have longer than 30 s to save when the job is stopped.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its stubs do not export it
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from tasks.run.launchers.order import Order

EXIT_STOPPED = 143
EXIT_FAILED = 1
_RENDEZVOUS = {
    "join_timeout": 600,  # hosts of a cluster may need minutes to start Python from a file server
    "last_call_timeout": 10,  # with fewer than all nodes, how long others are waited for
    "close_timeout": 10,
    "keep_alive_interval": 3,
    "keep_alive_max_attempt": 5,  # a node is lost after 15 s; clocks of nodes may differ by less than that
}
_SIGNALS = (
    "SIGTERM",
    "SIGINT",
    "SIGHUP",
    "SIGUSR1",
    "SIGUSR2",
)  # batch systems send these; ranks get the same one, and save
_STORE_S = 60.0
_LOOK_S = 0.5
_EXIT_BARRIER_S = 60.0  # how long a node whose ranks have ended waits for the others', which may need its store
_CACHED_S = 1.5  # the rendezvous' state is read once per second
logger = logging.getLogger("prdit.launch")


@dataclass(frozen=True)
class Place:
    """Where a node process is.

    Attributes:
        node: its number; 0 hosts the store.
        address: at which the other nodes reach it.
        store: host and port of the store; the port is 0 for node 0, which chooses one.
        start: how often this job was started before under the same token (Slurm requeues it).
    """

    node: int
    address: str
    store: tuple[str, int]
    start: int = 0


def run_ranks(order: Order, place: Place, stopping: threading.Event, publish: Callable[[int], None]) -> int:
    """Start the ranks of this node and follow them to their end.

    Args:
        order: the job.
        place: where this is.
        stopping: set when ranks are not to be started again.
        publish: called with the port of the store on node 0.
    Returns: 0 where all ranks ended with 0, else an exit code for this process.
    """
    # Otherwise all rounds of a rendezvous share one store, whose address nodes that are never rank 0 keep when its host is lost.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(_SIGNALS)
    host, port = place.store
    store = TCPStore(
        host,
        port,
        is_master=place.node == 0,
        multi_tenant=True,
        timeout=timedelta(seconds=_STORE_S),
        wait_for_workers=False,
    )
    publish(store.port)
    run_id = f"{order.name}-{order.token}-{place.start}"
    parameters = RendezvousParameters(
        "c10d", f"{host}:{store.port}", run_id, order.min_nodes, order.nodes, local_addr=place.address, **_RENDEZVOUS
    )
    rendezvous = create_handler(store, C10dRendezvousBackend(store, run_id), parameters)
    spec = WorkerSpec(
        role="rank",
        local_world_size=order.ranks,
        entrypoint=sys.executable,
        args=("-u", "-m", order.module, *order.arguments),
        rdzv_handler=rendezvous,
        max_restarts=order.max_restarts,
        monitor_interval=_LOOK_S,
        local_addr=place.address,
    )
    agent = _Agent(spec, _Inherited(), exit_barrier_timeout=_EXIT_BARRIER_S, shutdown_timeout=int(order.stop_s))
    agent.elastic, agent.stopping = order.min_nodes < order.nodes, stopping
    try:
        result = agent.run()
    except SignalException as error:
        logger.warning("stopped by %s", error.sigval.name)
        return EXIT_STOPPED  # the others may go on, so the rendezvous stays open
    except RendezvousClosedError:
        logger.warning("another node has ended the job")
        return EXIT_FAILED
    if result is None or result.is_failed():
        for rank, failure in sorted(result.failures.items() if result else ()):
            logger.error("rank %d (pid %d) ended with exit code %d", rank, failure.pid, failure.exitcode)
        rendezvous.shutdown()
        return EXIT_FAILED
    rendezvous.shutdown()
    return 0


class _Inherited(LogsSpecs):
    """Ranks write where this process does."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """No file of its own for any rank."""
        here = dict.fromkeys(envs, "")
        return LogsDest(stdouts=here, stderrs=dict(here), error_files=dict.fromkeys(envs, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """Unused."""
        return os.devnull


class _Agent(LocalElasticAgent):
    """An agent that does not take the end of all ranks for the end of the job when a node waits to join.

    A node that joins has every agent stop its ranks. Those of all nodes agree to stop, so an agent can find that its own have ended
    well before it sees why.
    """

    elastic = False
    stopping: threading.Event

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        left = f"{self._remaining_restarts} of {worker_group.spec.max_restarts} restarts left"
        logger.warning("the ranks of this node are started again (%s; nodes that come or go do not count)", left)
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: Any = super()._monitor_workers(worker_group)
        if self.stopping.is_set():
            self._remaining_restarts = 0
        elif self.elastic and result.state is WorkerState.SUCCEEDED:
            time.sleep(_CACHED_S)
            if worker_group.spec.rdzv_handler.num_nodes_waiting() > 0:
                return RunResult(state=WorkerState.HEALTHY)
        return result
