"""What a checkpoint holds, when it is written, and how it is read.

One file, `state.pt`: tensors, numbers and lists only, so that it is read with `weights_only=True`.
"""

import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import torch

from oasisgen.config import VQVAEConfig
from oasisgen.models.vqvae import VQVAE
from oasisgen.training.worker import Worker

STATE = "state.pt"
ASK_SECONDS = 1.0  # between two looks at the clock and at Ray's notices
DAMAGED = (FileNotFoundError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError)  # what reading one raises


class Timer:
    """Whether to save between the ends of epochs, decided alike on all ranks: when it is time, or a node will go.

    To agree is a barrier of some milliseconds, so the ranks do it once a second, at steps agreed on the time before.
    """

    def __init__(self, seconds: float, step: int) -> None:
        self.seconds = seconds
        self.asked_step, self.next_step = step, step + 1
        self.asked = self.saved = time.monotonic()
        self.noticed = False

    def due(self, step: int) -> bool:
        """Whether to save after this step. Call it at every step of every rank."""
        if step < self.next_step:
            return False
        now = time.monotonic()
        pace = (step - self.asked_step) / (now - self.asked)  # steps per second
        overdue, ahead = ray.train.collective.broadcast_from_rank_zero(
            (now - self.saved > self.seconds, max(1, int(pace * ASK_SECONDS)))
        )
        self.asked, self.asked_step, self.next_step = now, step, step + ahead
        notice = not self.noticed and ray.train.get_preemption_info() is not None  # also a barrier
        self.noticed |= notice
        if overdue or notice:
            self.saved = now
        return overdue or notice


class Course:
    """How far a stage has come: its steps, a line for each epoch that is over, and the sums of the one it is in.

    A new one is where the newest checkpoint left off, and so are the `parts`, networks and optimizers by name.
    """

    def __init__(self, worker: Worker, parts: dict[str, Any], losses: int) -> None:
        self.worker, self.parts = worker, parts
        self.past: list[dict[str, Any]] = []
        self.step = 0
        self.sums = torch.zeros(losses, device=worker.device)  # of losses, added up without a host sync
        if state := latest():
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.past, self.step = state["history"], state["step"]
            self.sums += state["sums"].to(worker.device) * (worker.rank == 0)  # it holds the sums of all ranks

    def means(self, steps: int) -> list[float]:
        """Mean losses of the epoch of `steps` steps that is over, the same on all ranks; the sums begin anew."""
        self.worker.sum(self.sums)
        means = (self.sums / (steps * self.worker.world)).tolist()
        self.sums.zero_()
        return means

    def save(self, metrics: dict[str, Any]) -> None:
        """Rank 0 saves, every rank reports (a barrier)."""
        self.worker.sum(total := self.sums.clone())
        if self.worker.rank != 0:
            ray.train.report(metrics)
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        with tempfile.TemporaryDirectory() as folder:
            torch.save({**state, "history": self.past, "step": self.step, "sums": total}, Path(folder) / STATE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def read(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU."""
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE, map_location="cpu", weights_only=True)


def read_vqvae(checkpoint: ray.train.Checkpoint, config: VQVAEConfig) -> VQVAE:
    """The VQ-VAE in a checkpoint of stage 1, in evaluation mode."""
    model = VQVAE(config)
    model.load_state_dict(read(checkpoint)["model"])
    return model.eval().requires_grad_(False)


def latest() -> dict[str, Any] | None:
    """The newest state that can be read, or None at the start of a run.

    Storage may have lost the end of a file, in a power cut for example: the one before then serves.
    """
    for reported in reversed(ray.train.get_all_reported_checkpoints()):
        try:
            return read(reported.checkpoint)
        except DAMAGED:
            continue
    return None
