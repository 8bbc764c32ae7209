"""Ranks by torchrun's contract (RANK, WORLD_SIZE, LOCAL_RANK); everything works unchanged in a single process."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """Return whether a process group of more than one rank is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's rank; 0 in a single process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks; 1 in a single process."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Return whether this is the rank that writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if is_distributed():
        dist.barrier()


def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks (the tensor itself in a single process); not differentiable."""
    if not is_distributed():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


class Vote:
    """A question to all ranks, asked once a step, whose answer is that of the step before: nobody waits for it."""

    def __init__(self) -> None:
        self._count = torch.zeros(())  # on the CPU, so that no device is waited for either
        self._work: dist.Work | None = None

    def any_said_yes(self, yes: bool) -> bool:
        """Say yes or no for this step; return, equal on every rank, whether any said yes at the last one.

        In a single process the answer is that of this step.
        """
        if not is_distributed():
            return yes
        if self._work is not None:
            self._work.wait()
        answer = bool(self._count > 0)
        self._count = torch.tensor(float(yes))
        self._work = dist.all_reduce(self._count, async_op=True)
        return answer


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows [m, ...] of all ranks, in the order of ranks; the counts may differ. No pickle on the wire."""
    if not is_distributed():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([rows.shape[0]], dtype=torch.int64, device=rows.device))
    most = max(int(count) for count in counts)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])


def local_rank() -> int:
    """Return this process's number on its machine, from LOCAL_RANK; 0 in a single process."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def broadcast_text(text: str) -> str:
    """Return the main rank's text on every rank (as bytes of a tensor: no pickle on the wire)."""
    if not is_distributed():
        return text
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    size = torch.tensor([len(data)])
    dist.broadcast(size, 0)
    data = data if is_main() else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the main rank's buffers (the running statistics of batch norm, which each rank keeps)."""
    if is_distributed():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
