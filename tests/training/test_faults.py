"""What clusters do to a run, done for real."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from oasisgen.data.slices import DataSet
from oasisgen.training import history
from oasisgen.training.run import train
from tests.conftest import tiny

pytestmark = pytest.mark.slow


def train_workers() -> list[int]:
    """Process ids of Ray Train's workers under this process's own Ray."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::") and b"RayTrainWorker" in (
                folder / "cmdline"
            ).read_bytes():
                pid = int(folder.name)
                if parent(parent(pid)) == os.getpid():  # worker <- raylet <- us
                    found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    return found


def test_a_killed_worker_costs_no_step(data: DataSet, trained: Path, tmp_path: Path) -> None:
    """SIGKILL after the first epoch of each stage: the same call goes on by itself, to the same weights."""
    out = tmp_path / "tiny"
    killed = []

    def kill() -> None:
        for stage in ("vqvae", "dcgan"):
            metrics = out / "metrics" / f"{stage}.jsonl"
            while not metrics.exists():
                time.sleep(0.02)
            (pid,) = train_workers()
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    train(tiny(data, out))
    killer.join(timeout=1)
    assert len(killed) == 2
    for name in ("vqvae", "dcgan"):
        assert [line["step"] for line in history.read(str(out / "metrics"), name)] == [6, 12]
        weights, expected = (load_file(run / "model" / f"{name}.safetensors") for run in (out, trained))
        assert all(np.array_equal(weights[key], expected[key]) for key in expected)
