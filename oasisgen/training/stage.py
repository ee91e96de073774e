"""The state of a stage: its steps and epochs, when it is saved, and how it is rolled back."""

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from oasisgen import meters, storage
from oasisgen.config.stage import Training
from oasisgen.data.feed import steps_per_epoch
from oasisgen.progress import Progress
from oasisgen.training import history
from oasisgen.training.checkpoint import _read, _states, write
from oasisgen.training.history import Epoch
from oasisgen.training.worker import Diverged, Worker

SECONDS_BETWEEN_CHECKS = 1.0  # of the clock and of Ray's notices
MAX_ROLLBACKS = 3  # of a stage


class Rows(Protocol):
    """What a stage trains on: a `Feed`, or what gives batches in the same way."""

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, seed: int, epoch: int, rank: int, world: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `data.feed.epoch_batches`."""
        ...


class Timer:
    """Decides, for all ranks alike, whether to save within an epoch: at intervals, and when a node is about to be
    shut down.

    The decision is a collective that takes some milliseconds, so the ranks make it only about once a second. At each
    check they agree on the step of the next one.
    """

    def __init__(self, worker: Worker, seconds: float, step: int) -> None:
        self.worker, self.seconds = worker, seconds
        self.checked_step, self.next_step = step, step + 1
        self.checked = self.saved = time.monotonic()
        self.noticed = False
        self.node_may_go = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"

    def due(self, step: int) -> bool:
        """Whether to save after this step. All ranks must call it at the same steps."""
        if self.checked_step <= step < self.next_step:  # the step is smaller after a rollback
            return False
        now = time.monotonic()
        pace = (step - self.checked_step) / (now - self.checked)  # steps per second
        overdue, ahead = now - self.saved > self.seconds, max(1, int(pace * SECONDS_BETWEEN_CHECKS))
        agreed = torch.tensor([overdue, ahead, self.node_may_go], device=self.worker.device)
        self.worker.broadcast(agreed)  # clocks and environments differ between nodes
        overdue, ahead, node_may_go = agreed.tolist()
        self.checked, self.checked_step, self.next_step = now, step, step + ahead
        notice = not self.noticed and node_may_go and ray.train.get_preemption_info() is not None  # a barrier, too
        self.noticed |= notice
        if overdue or notice:
            self.saved = now
        return overdue or notice


class StageState:
    """The progress of a stage: its step, a record of each finished epoch, and the loss sums of the current one.

    It resumes from the newest checkpoint, together with the `parts`: networks and optimizers by name. An epoch can be
    rolled back; it is then repeated at half the learning rate. All ranks must call the same methods in the same order.
    """

    def __init__(
        self, worker: Worker, config: Training, stage: str, feed: Rows, parts: dict[str, Any], losses: tuple[str, ...]
    ) -> None:
        """`feed` is the training split; `losses` names the losses that a step returns."""
        settings = getattr(config, stage)
        self.worker, self.stage, self.feed, self.parts, self.losses = worker, stage, feed, parts, losses
        self.seed, self.epochs, self.batch_size = config.seed, settings.epochs, settings.batch_size
        self.steps = steps_per_epoch(len(feed), self.batch_size)  # of an epoch
        self.total_steps = self.epochs * self.steps
        self.metrics_uri = storage.join(config.out, "metrics")
        self.past: list[Epoch] = []
        self.step = 0  # over all epochs
        self.rollbacks = 0
        self.sums = torch.zeros(len(losses), device=worker.device)  # added up without a host sync
        if state := self._newest(storage.join(config.out, stage)):
            self._restore(state)
        # The state at the end of the last finished epoch. A checkpoint that was saved there has no "good" of its own.
        self.last_good = state["good"] if state and "good" in state else copy.deepcopy(self._state())
        self.timer = Timer(worker, config.checkpoint_seconds, self.step)
        done = self.step * self.batch_size
        self.progress = Progress(stage, self.total_steps * self.batch_size, "slices", done)

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0."""
        return len(self.past)

    @property
    def lr_factor(self) -> float:
        """Factor of the learning rate: each rollback halves it."""
        return 0.5**self.rollbacks

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """This rank's part of each remaining batch of the epoch; see `epoch_batches`."""
        first = self.step % self.steps
        rank, world = self.worker.rank, self.worker.world
        return self.feed.batches(self.batch_size, self.seed, self.epoch, rank, world, first)

    def random(self, same_on_ranks: bool = False) -> torch.Generator:
        """A generator for this step: different numbers on each rank, or the same on all."""
        return self.worker.random(step_seed(self.seed, self.step, 0 if same_on_ranks else self.worker.rank))

    def share(self, rows: int) -> float:
        """Weight of a mean over this rank's `rows`, so that the mean over all ranks equals that of the whole batch.

        DDP averages gradients over ranks with equal weights, even if three ranks have 6, 5 and 5 rows of a batch of 16.
        """
        return rows * self.worker.world / self.batch_size

    def end_step(self, *losses: torch.Tensor, share: float, line: Callable[[], str]) -> None:
        """Count a step and add up its losses, log a line from time to time, and save when a checkpoint is due.

        `losses` are means over this rank's rows, and `share` is their weight; `line` gives the text of the log line.
        """
        self.sums += torch.stack(losses).detach() * (share / self.worker.world)
        self.step += 1
        self.progress.done += self.batch_size
        self.worker.say(lambda: self._line(line()))
        if self.step % self.steps and self.timer.due(self.step):
            self.save()

    def mean_losses(self) -> dict[str, float]:
        """Mean losses of the epoch over its steps and all ranks (a collective). Call it after the last step."""
        self.worker.sum(total := self.sums.clone())
        return dict(zip(self.losses, (total / self.steps).tolist(), strict=True))

    def roll_back_if(self, fault: str) -> bool:
        """Roll back to the end of the previous epoch if rank 0 reports a `fault`, in words; returns whether it did.

        All ranks roll back, and the restored state is saved. Raises Diverged after too many rollbacks.
        """
        if fault := self.worker.agree(fault):
            self._roll_back(fault)
        return bool(fault)

    def save(self) -> None:
        """Save within an epoch, unless its losses are not finite: such an epoch will be rolled back."""
        state = self._state()
        if state["sums"].isfinite().all():
            self._report({"step": self.step}, state | {"good": self.last_good})

    def end_epoch(self, metrics: Mapping[str, float], line: str) -> None:
        """Record and save a finished epoch. Raises LockLost if another job holds the run."""
        self.worker.require_lock()  # or this rank would overwrite another job's metrics
        line = self._line(line)
        ended = Epoch(self.epoch + 1, self.step, metrics, round(self.progress.rate, 1), self.rollbacks)
        self.past.append(ended)
        self.sums.zero_()
        self.last_good = copy.deepcopy(self._state())
        if self.worker.rank == 0:
            history.write(self.metrics_uri, self.stage, self.past)
            shown = {"ssim": metrics["ssim"]} if "ssim" in metrics else {}
            meters.show(self.stage, epoch=ended.epoch, slices_per_second=ended.slices_per_s, **shown)
        self._report(ended.to_json(), self.last_good)
        self.worker.say(lambda: line, always=True)

    def _line(self, text: str) -> str:
        return f"epoch {self.epoch + 1}/{self.epochs}, {text}, {self.progress.describe()}"

    def _roll_back(self, reason: str) -> None:
        where = f"stage {self.stage}, epoch {self.epoch + 1}: {reason}"
        if self.rollbacks == MAX_ROLLBACKS:
            raise Diverged(
                f"{where}, after {self.rollbacks} rollbacks, each of which halved the learning rate: lower it further "
                f"with --{self.stage}.learning-rate"
            )
        self.worker.say(lambda: f"{where}: rolled back, trained again at half the learning rate", always=True)
        self.last_good["undone"] = self.rollbacks + 1
        self.progress.undo((self.step - self.last_good["step"]) * self.batch_size)
        self._restore(self.last_good)
        self._report({"step": self.step}, self.last_good)

    def _newest(self, uri: str) -> dict[str, Any] | None:
        """The state that all ranks resume from. Rank 0 chooses it, because ranks may see different listings."""
        found = next(_states(uri), None) if self.worker.rank == 0 else None
        saved = self.worker.agree(found[0] if found else None)
        if not saved:
            return None
        return found[1] if found else _read(saved)

    def _report(self, metrics: dict[str, Any], state: dict[str, Any]) -> None:
        """Rank 0 saves, and every rank reports (a barrier). Raises LockLost if another job holds the run."""
        self.worker.require_lock()
        if self.worker.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(state, Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _state(self) -> dict[str, Any]:
        """The whole state, with loss sums over all ranks (a collective)."""
        self.worker.sum(total := self.sums.clone())
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        past = [epoch.to_json() for epoch in self.past]
        return parts | {"history": past, "step": self.step, "undone": self.rollbacks, "sums": total}

    def _restore(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(state[name]))  # a copy, because optimizers change these tensors in place
        self.past, self.step, self.rollbacks = history.of(state), state["step"], state["undone"]
        self.sums.copy_(
            state["sums"] * (self.worker.rank == 0)
        )  # the saved sums are over all ranks, so one rank takes them


def step_seed(seed: int, step: int, rank: int) -> int:
    """The 64-bit seed of a rank's random numbers in a step: a hash, so that no two simple sums collide.

    PyTorch's CPU generator uses only the lower 32 bits, so there two steps share their numbers with a chance of 1 in
    four billion.
    """
    low, high = np.random.SeedSequence((seed, step, rank)).generate_state(2).tolist()
    return low + (high << 32)


def non_finite(losses: dict[str, float]) -> str:
    """In words, the first loss that is not finite; empty if all are."""
    faults = (f"the {name.replace('_', ' ')} is {value}" for name, value in losses.items() if not math.isfinite(value))
    return next(faults, "")
