"""What every training worker needs of its surroundings: device, threads, precision, and a line to the driver."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero

from oasisgen.data.feed import read_ahead
from oasisgen.errors import UserError
from oasisgen.lock import LockLost, LockProof
from oasisgen.precision import autocast
from oasisgen.progress import SECONDS_BETWEEN_LINES

T = TypeVar("T")


class Diverged(UserError):
    """Training goes wrong, again and again. Every rank raises it at the same place."""


@dataclass(frozen=True)
class Driver:
    """What the ranks know of the job that started them."""

    mailbox: Any  # actor handle of oasisgen.training.launch.Mailbox: lines to print
    lock: LockProof | None = None  # of the run's folder
    threads: int = 0  # of each rank; 0: its share of its machine


@dataclass
class Worker:
    """One rank of a stage."""

    rank: int
    world: int
    device: torch.device
    driver: Driver | None
    spoken: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, seed: int, driver: Driver | None) -> "Worker":
        """The rank that Ray Train started this process for. Sets global state: see `set_up_torch`."""
        context = ray.train.get_context()
        threads = driver.threads if driver else 0
        set_up_torch(seed, threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), driver)

    def autocast(self) -> AbstractContextManager:
        """As `precision.autocast`, on this worker's device."""
        return autocast(self.device)

    def random(self, seed: int) -> torch.Generator:
        """A generator of this worker's device: what it draws need not be copied there."""
        return torch.Generator(self.device).manual_seed(seed)

    def ahead(self, batches: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
        """Batches of arrays, as tensors on this worker's device.

        For a GPU a thread reads the next batch while the GPU works on this one, into pinned memory: only from there
        does a copy leave the host free.
        """
        tensors = (tuple(map(torch.from_numpy, arrays)) for arrays in batches)
        if self.device.type == "cpu":
            return tensors
        pinned = read_ahead(tuple(tensor.pin_memory() for tensor in batch) for batch in tensors)
        return (tuple(tensor.to(self.device, non_blocking=True) for tensor in batch) for batch in pinned)

    def sum(self, *tensors: torch.Tensor) -> None:
        """Add tensors up over all ranks, in place."""
        for tensor in tensors:
            if self.world > 1:
                dist.all_reduce(tensor)

    def broadcast(self, *tensors: torch.Tensor) -> None:
        """Give all ranks what rank 0 has, in place."""
        for tensor in tensors:
            if self.world > 1:
                dist.broadcast(tensor, src=0)

    def require_lock(self) -> None:
        """Raise LockLost on every rank if another job holds the run's folder by now: rank 0 looks (a collective)."""
        lost = torch.zeros(1, device=self.device)
        if self.rank == 0 and self.driver and self.driver.lock:
            try:
                self.driver.lock.require()
            except LockLost:
                lost += 1
        self.broadcast(lost)
        if lost:
            raise LockLost("another job took the run over while this one was silent")

    def agree(self, value: T) -> T:
        """What rank 0 gives, on all ranks (a barrier); for what is small and no tensor."""
        return broadcast_from_rank_zero(value) if self.world > 1 else value

    def say(self, line: Callable[[], str], always: bool = False) -> None:
        """Rank 0 sends a line to the driver, at most one every few seconds; `line` is only called if it is sent."""
        now = time.monotonic()
        if self.rank == 0 and self.driver and (always or now - self.spoken > SECONDS_BETWEEN_LINES):
            self.spoken = now
            self.driver.mailbox.put.remote(line())


def set_up_torch(seed: int, threads: int) -> None:
    """Set the global state of PyTorch in this process: its threads, and the seed that initial weights are drawn with.

    Nothing else in training draws from the global generator. Ray leaves OMP_NUM_THREADS=1.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def unwrap(model: torch.nn.Module) -> Any:
    """The module itself, inside DDP or not."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
