"""What clusters do to a run, done for real."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from oasisgen import storage
from oasisgen.data.slices import DataSet
from oasisgen.pipelines.train import train
from oasisgen.training import history
from tests.conftest import ROOT, one_line, run_job, start_job, tiny, tiny_flags
from tests.proxy import proxy

pytestmark = pytest.mark.timeout(1200)


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


@pytest.mark.slow
def test_storage_in_trouble_and_a_second_driver_cost_no_step(data: DataSet, trained: Path, s3: str) -> None:
    """S3 answers 503 for seconds, then hangs up in an upload; meanwhile someone starts the same run again."""
    run = f"{s3}/runs/trouble"
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as fault:
        first = start_job("train", *tiny_flags(data, run), **fault.variables)
        assert first.stdout
        for line in first.stdout:
            if "vqvae] epoch 1/2" in line and "SSIM" in line:
                fault.for_seconds(4, "503 SlowDown")
            if "codes] done: 96 train" in line:
                fault.once("hang up", "PUT", "state.pt")
                second = run_job("train", *tiny_flags(data, run))
                assert second.returncode == 1
                assert "is being worked on by" in one_line(second.stderr)
        _, stderr = first.communicate()
        assert first.returncode == 0, stderr
        assert {text.split(" ", 2)[2] for text in fault.faults} == {"503 SlowDown", "hang up"}
    for name, steps in {"vqvae": [6, 12], "labels": [6], "dcgan": [6, 12]}.items():
        assert [epoch.step for epoch in history.read(f"{run}/metrics", name)] == steps
        weights = storage.read_bytes(f"{run}/model/{name}.safetensors")
        assert weights == (trained / "model" / f"{name}.safetensors").read_bytes()


DISK = """
mount -t tmpfs -o size=400k tmpfs {out} && "$@"; echo "full: $?"
mount -o remount,size=200m {out} && "$@"; echo "freed: $?"
cp -r {out}/run {copy}
"""


@pytest.mark.infra  # mounts a file system
@pytest.mark.usefixtures("trained")  # the first run of the data set, which trains its feature network
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(data: DataSet, tmp_path: Path) -> None:
    """On a file system of our own, too small for the first checkpoint and then enlarged."""
    out, copy = tmp_path / "disk", tmp_path / "copy"
    out.mkdir()
    script = tmp_path / "disk.sh"
    script.write_text(DISK.format(out=out, copy=copy))
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(out)], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), *tiny_flags(data, out / "run")]
    done = subprocess.run(
        ["unshare", "-rm", "bash", str(script), *command],
        capture_output=True,
        text=True,
        env=os.environ | {"RAY_ADDRESS": "local"},
    )
    assert "full: 1" in done.stdout
    assert "freed: 0" in done.stdout, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train.py:")]  # of two runs
    assert "No space left on device" in line
    calm = tmp_path / "calm"  # on a Ray of its own too, whose workers have as many threads
    assert run_job("train", *tiny_flags(data, calm), RAY_ADDRESS="local").returncode == 0
    for name in ("vqvae", "dcgan"):
        weights = (copy / "model" / f"{name}.safetensors").read_bytes()
        assert weights == (calm / "model" / f"{name}.safetensors").read_bytes()


@pytest.mark.slow
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
        assert [epoch.step for epoch in history.read(str(out / "metrics"), name)] == [6, 12]
        weights, expected = (load_file(run / "model" / f"{name}.safetensors") for run in (out, trained))
        assert all(np.array_equal(weights[key], expected[key]) for key in expected)
