"""The processes of one training: who they are, and what they agree on.

Control messages are small tensors on the CPU (gloo), gradients go over NCCL where there is CUDA.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from tasks.run.launchers.rank import this_rank


class ReplicasDifferError(RuntimeError):
    """Ranks that must have the same weights do not. The group starts again from the newest resumable state."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; the default is the only one.

    Attributes:
        rank: of all.
        world: how many there are.
        local_rank, local_world: the same of this node.
        timeout_s: longest wait for another rank.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    timeout_s: float = 600.0

    @classmethod
    def of_environment(cls) -> Self:
        """As the launcher's node process set it; the only process where there is none.

        Raises: LauncherError: there are more or fewer ranks than were asked for.
        """
        if "RANK" not in os.environ:
            return cls()
        found = this_rank()
        return cls(found.rank, found.world, found.local_rank, found.local_world, found.timeout_s)

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Let the ranks talk; nothing to do for a single one.

        The group is left by the end of the process alone: DDP's destructor waits for gloo's threads while it holds the
        interpreter's lock, which they need (PyTorch 2.13), and can hang for ever once the group is destroyed.
        """
        if self.world > 1:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=self.timeout_s))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return [float(value) for value in summed]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.total([float(bool(flag))])[0] > 0

    def meet(self) -> None:
        """Wait until all ranks have come here."""
        self.total([0.0])

    def from_first(self, value: int) -> int:
        """The first rank's number."""
        if self.world == 1:
            return value
        number = torch.tensor(value, dtype=torch.int64)
        dist.broadcast(number, 0)
        return int(number)

    def texts(self, text: str) -> list[str]:
        """Texts of all ranks."""
        found: list[str] = [text]
        if self.world > 1:
            found = [""] * self.world
            dist.all_gather_object(found, text)
        return found

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by those of the first rank."""
        for tensor in tensors if self.world > 1 else ():
            dist.broadcast(tensor, 0)

    def gathered(self, tensor: Tensor) -> Tensor:
        """Tensors of all ranks, of equal shapes, one after another along the first axis, on the CPU."""
        tensor = tensor.cpu().contiguous()
        if self.world == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    def mean_of(self, found: Mapping[str, float], count: int, names: Sequence[str]) -> dict[str, float]:
        """Means over all ranks of named means over `count` volumes each; a rank with none has an empty mapping.

        Args:
            found: this rank's means.
            count: volumes they are over.
            names: the same on every rank.
        """
        if self.world == 1:
            return dict(found)
        *sums, total = self.total([*(found[name] * count if count else 0.0 for name in names), float(count)])
        return {name: value / total for name, value in zip(names, sums, strict=True)}

    def check_equal(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Refuse replicas that are not the same, bit by bit.

        Raises: ReplicasDifferError: names the tensors that differ between ranks.
        """
        if self.world == 1:
            return
        hashes = torch.tensor([_checksum(tensor) for tensor in tensors.values()], dtype=torch.int64)
        low, high = hashes.clone(), hashes.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if differing := [name for name, same in zip(tensors, (low == high).tolist(), strict=True) if not same]:
            raise ReplicasDifferError(
                f"The {self.world} replicas are not identical {when}: {len(differing)} of {len(hashes)} tensors differ, first "
                f"{differing[0]}. A device or a kernel computes differently, or memory is faulty; the training goes on from its "
                "newest resumable state. If it happens again, find the node by running on fewer."
            )


def _checksum(tensor: Tensor) -> int:
    """Of the bits, so that NaN equals itself."""
    return zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def mine(count: int, ranks: Ranks) -> list[int]:
    """Which of a number of things this rank works on: every world-th, from its own number on."""
    return list(range(ranks.rank, count, ranks.world))
