"""A training worker: its device, threads, precision, collectives, and messages to the driver."""

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
    """Training keeps diverging after rollbacks. All ranks raise it at the same step."""


@dataclass(frozen=True)
class Driver:
    """What the ranks know about the job that started them."""

    controller: Any  # actor handle of oasisgen.training.controller.Controller, which takes lines to print
    lock: LockProof | None = None  # of the run's folder
    threads: int = 0  # per rank; 0: its share of the machine's CPUs


@dataclass
class Worker:
    """One rank of a stage's training."""

    rank: int
    world: int
    device: torch.device
    driver: Driver | None
    spoken: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, seed: int, driver: Driver | None) -> "Worker":
        """The worker of this process, as Ray Train started it. Sets global state: see `set_up_torch`."""
        context = ray.train.get_context()
        threads = driver.threads if driver else 0
        set_up_torch(seed, threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), driver)

    def autocast(self) -> AbstractContextManager:
        """As `precision.autocast`, on this worker's device."""
        return autocast(self.device)

    def random(self, seed: int) -> torch.Generator:
        """A seeded generator on this worker's device, so that samples need no copy."""
        return torch.Generator(self.device).manual_seed(seed)

    def ahead(self, batches: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
        """Batches of arrays as tensors on this worker's device.

        For a GPU, a thread reads the next batch into pinned memory while the GPU works on the current one: only copies
        from pinned memory are asynchronous.
        """
        tensors = (tuple(map(torch.from_numpy, arrays)) for arrays in batches)
        if self.device.type == "cpu":
            return tensors
        pinned = read_ahead(tuple(tensor.pin_memory() for tensor in batch) for batch in tensors)
        return (tuple(tensor.to(self.device, non_blocking=True) for tensor in batch) for batch in pinned)

    def sum(self, *tensors: torch.Tensor) -> None:
        """Sum tensors over all ranks, in place."""
        for tensor in tensors:
            if self.world > 1:
                dist.all_reduce(tensor)

    def broadcast(self, *tensors: torch.Tensor) -> None:
        """Copy tensors from rank 0 to all ranks, in place."""
        for tensor in tensors:
            if self.world > 1:
                dist.broadcast(tensor, src=0)

    def require_lock(self) -> None:
        """Raise LockLost on every rank if another job has taken the run's lock (a collective; rank 0 checks)."""
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
        """Rank 0's value, on all ranks (a barrier); for small objects that are not tensors."""
        return broadcast_from_rank_zero(value) if self.world > 1 else value

    def say(self, line: Callable[[], str], always: bool = False) -> None:
        """Send a line from rank 0 to the driver, at most one every few seconds; `line` is called only if it is sent."""
        now = time.monotonic()
        if self.rank == 0 and self.driver and (always or now - self.spoken > SECONDS_BETWEEN_LINES):
            self.spoken = now
            self.driver.controller.put.remote(line())


def set_up_torch(seed: int, threads: int) -> None:
    """Set PyTorch's global state in this process: its threads, and the seed for initial weights.

    Nothing else in training draws from the global generator. Ray leaves OMP_NUM_THREADS=1.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def unwrap(model: torch.nn.Module) -> Any:
    """The module itself, without DDP's wrapper."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
