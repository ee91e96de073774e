"""The state of a stage: its steps and epochs, when it is saved, and how it is rolled back."""

import copy
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from oasisgen import meters, storage
from oasisgen.config.train import TrainConfig
from oasisgen.progress import duration
from oasisgen.training import history
from oasisgen.training.checkpoint import _read, _states, write
from oasisgen.training.worker import Diverged, Worker

ASK_SECONDS = 1.0  # between two looks at the clock and at Ray's notices


MOST_UNDONE = 3  # epochs of a stage


class Timer:
    """Whether to save between the ends of epochs, decided alike on all ranks: when it is time, or a node will go.

    To agree is a barrier of some milliseconds, so the ranks do it once a second, at steps agreed on the time before.
    """

    def __init__(self, worker: Worker, seconds: float, step: int) -> None:
        self.worker, self.seconds = worker, seconds
        self.asked_step, self.next_step = step, step + 1
        self.asked = self.saved = time.monotonic()
        self.noticed = False
        self.may_go = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"

    def due(self, step: int) -> bool:
        """Whether to save after this step. Call it at every step of every rank."""
        if self.asked_step <= step < self.next_step:  # it is smaller where an epoch was undone
            return False
        now = time.monotonic()
        pace = (step - self.asked_step) / (now - self.asked)  # steps per second
        overdue, ahead = now - self.saved > self.seconds, max(1, int(pace * ASK_SECONDS))
        agreed = torch.tensor([overdue, ahead, self.may_go], device=self.worker.device)
        self.worker.broadcast(agreed)  # what may differ between nodes, their environment too
        overdue, ahead, may_go = agreed.tolist()
        self.asked, self.asked_step, self.next_step = now, step, step + ahead
        notice = not self.noticed and may_go and ray.train.get_preemption_info() is not None  # a barrier, too
        self.noticed |= notice
        if overdue or notice:
            self.saved = now
        return overdue or notice


class StageState:
    """How far a stage has come: its steps, a line for each epoch that is over, and the sums of the one it is in.

    A new one is where the newest checkpoint left off, and so are the `parts`, networks and optimizers by name. An epoch
    that went wrong is undone, and trained again at half the rate. All ranks call the same methods in the same order.
    """

    def __init__(
        self, worker: Worker, config: TrainConfig, stage: str, parts: dict[str, Any], losses: tuple[str, ...]
    ) -> None:
        self.worker, self.stage, self.parts, self.losses = worker, stage, parts, losses
        self.metrics_uri = storage.join(config.out, "metrics")
        self.past: list[dict[str, Any]] = []
        self.step = 0
        self.rollbacks = 0  # epochs
        self.sums = torch.zeros(len(losses), device=worker.device)  # added up without a host sync
        if state := self._newest(storage.join(config.out, stage)):
            self._restore(state)
        # The end of the epoch before, which is what a checkpoint of an epoch's end is itself.
        self.last_good = state["good"] if state and "good" in state else copy.deepcopy(self._state())

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied by."""
        return 0.5**self.rollbacks

    def add(self, *losses: torch.Tensor, share: float = 1.0) -> None:
        """A step was made, with these losses: means over this rank's rows, which weigh as `Worker.share` says."""
        self.sums += torch.stack(losses).detach() * (share / self.worker.world)
        self.step += 1

    def means(self, steps: int) -> dict[str, float]:
        """Mean losses of the epoch of `steps` steps that is over, the same on all ranks; the sums begin anew.

        Nothing where one of them is no number: the epoch is undone.
        """
        self.worker.sum(self.sums)
        means = dict(zip(self.losses, (self.sums / steps).tolist(), strict=True))
        self.sums.zero_()
        wrong = [
            f"the {name.replace('_', ' ')} is {value}" for name, value in means.items() if not math.isfinite(value)
        ]
        return {} if self.rolls_back(*wrong[:1]) else means

    def save(self) -> None:
        """Save in the middle of an epoch, unless it is to be undone anyway."""
        state = self._state()
        if state["sums"].isfinite().all():
            self._report({"step": self.step}, state | {"good": self.last_good})

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        """Keep what is known of an epoch that went well, and save. Raises LockLost if another job holds the run."""
        self.worker.require_lock()  # the metrics may be another job's by now
        metrics = {"epoch": len(self.past) + 1, "step": self.step, **metrics, "undone": self.rollbacks}
        self.past.append(metrics)
        self.last_good = copy.deepcopy(self._state())
        if self.worker.rank == 0:
            history.write(self.metrics_uri, self.stage, self.past)
            shown = {"epoch": "epoch", "slices_per_s": "slices_per_second", "ssim": "ssim"}
            meters.show(self.stage, **{meter: metrics[name] for name, meter in shown.items() if name in metrics})
        self._report(metrics, self.last_good)

    def rolls_back(self, fault: str = "") -> bool:
        """Whether the epoch that is over is undone: if rank 0 found fault with it, which `fault` puts into words.

        Then all ranks are back at the end of the epoch before, which is saved. Raises Diverged if going back has not
        helped several times.
        """
        if fault := self.worker.agree(fault):
            self._undo_epoch(fault)
        return bool(fault)

    def _undo_epoch(self, reason: str) -> None:
        where = f"stage {self.stage}, epoch {len(self.past) + 1}: {reason}"
        if self.rollbacks == MOST_UNDONE:
            raise Diverged(
                f"{where}, after {self.rollbacks} new starts, each at half the rate: lower it by more, "
                f"--{self.stage}.learning-rate"
            )
        self.worker.say(lambda: f"{where}: once more, at half the rate", always=True)
        self.last_good["undone"] = self.rollbacks + 1
        self._restore(self.last_good)
        self._report({"step": self.step}, self.last_good)

    def _newest(self, uri: str) -> dict[str, Any] | None:
        """The state that all ranks go on from. Rank 0 chooses: the others may look later, or see an older listing."""
        found = next(_states(uri), None) if self.worker.rank == 0 else None
        saved = self.worker.agree(found[0] if found else None)
        if not saved:
            return None
        return found[1] if found else _read(saved)

    def _report(self, metrics: dict[str, Any], state: dict[str, Any]) -> None:
        """Rank 0 saves, every rank reports (a barrier). Raises LockLost if another job holds the run by now."""
        self.worker.require_lock()
        if self.worker.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(state, Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _state(self) -> dict[str, Any]:
        """Everything, the sums over all ranks (a collective)."""
        self.worker.sum(total := self.sums.clone())
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return parts | {"history": list(self.past), "step": self.step, "undone": self.rollbacks, "sums": total}

    def _restore(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(state[name]))  # optimizers would go on in these very tensors
        self.past, self.step, self.rollbacks = list(state["history"]), state["step"], state["undone"]
        self.sums.copy_(state["sums"] * (self.worker.rank == 0))  # they are those of all ranks


@dataclass
class Pace:
    """Slices per second and time left of a stage, from the steps this process has made."""

    total_steps: int
    batch_size: int
    first_step: int
    started: float = field(default_factory=time.monotonic)

    def rate(self, step: int) -> float:
        """Slices per second so far."""
        return (step - self.first_step) * self.batch_size / max(time.monotonic() - self.started, 1e-9)

    def describe(self, step: int) -> str:
        """`61 slices/s, 3:20 left`."""
        rate = self.rate(step)
        left = duration((self.total_steps - step) * self.batch_size / rate) if rate else "?"
        return f"{rate:.0f} slices/s, {left} left"
