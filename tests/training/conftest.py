"""A training loop in the process of a test: the start of Ray Train takes many times as long as a few steps."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray.train.torch
import torch

from oasisgen import storage
from oasisgen.config.stage import Training
from oasisgen.lock import LockProof
from oasisgen.training import launch
from oasisgen.training.launch import Stage
from oasisgen.training.worker import Worker, set_up_torch


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch.fit` runs the loop here, as the only rank, without a lock. Checkpoints lie where Ray Train puts them."""

    def fit(stage: Stage, config: Training, lock: LockProof | None = None) -> None:
        folder = Path(storage.join(config.out, stage.name))

        def report(metrics: dict[str, Any], checkpoint: Any = None) -> None:
            shutil.copytree(checkpoint.path, folder / f"checkpoint_{len(list(folder.glob('checkpoint_*'))):06d}")

        monkeypatch.setattr(ray.train, "report", report)
        set_up_torch(config.seed, torch.get_num_threads())  # other tests share this process
        stage.loop(config=config, worker=Worker(0, 1, torch.device("cpu"), driver=None), **stage.inputs)

    monkeypatch.setattr(launch, "fit", fit)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model, **_: model)
