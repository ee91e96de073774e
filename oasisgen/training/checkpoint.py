"""What a checkpoint holds, and how it is written and read.

One file, `state.pt`: tensors, numbers and lists only, so that it is read with `weights_only=True`.
"""

import tempfile
from pathlib import Path
from typing import Any

import ray.train
import torch

from oasisgen.config import VQVAEConfig
from oasisgen.models.vqvae import VQVAE

STATE = "state.pt"


def report(metrics: dict[str, Any], state: dict[str, Any], rank: int) -> None:
    """End an epoch: rank 0 saves `state`, every rank reports (a barrier)."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / STATE)
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
    """The state this worker resumes from, or None at the start of a run."""
    checkpoint = ray.train.get_checkpoint()
    return read(checkpoint) if checkpoint else None
