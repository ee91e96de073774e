"""The jobs on a Ray cluster of three nodes, everything on S3: submitted, stopped, and losing nodes."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow.fs
import pytest
from ray.cluster_utils import Cluster

from oasisgen import storage
from oasisgen.data.slices import DataSet
from oasisgen.training import history
from tests.conftest import ROOT, digests, run_job, start_job, tiny_flags

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
ONE_PER_NODE = ["--workers", "2", "--cpus-per-worker", "1.25"]  # two of these do not fit on a node of 2 CPUs
LONG_EPOCHS = ["--vqvae.channels", "64", "--vqvae.batch-size", "2"]  # 48 steps, some seconds


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Nodes:
    """A head without CPUs that may use S3, and workers that learn how from the driver alone."""

    def __init__(self) -> None:
        port, agent_port = free_ports(2)  # this machine's other Ray has the usual ones
        self.dashboard = f"http://127.0.0.1:{port}"
        head = {"include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": agent_port}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **head})
        self.folders: list[str] = []
        self.workers = [self.add(), self.add()]

    def add(self) -> object:
        """One more node of 2 CPUs."""
        hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
        # A folder of its own: nodes that share one replace each other's copy of the working directory. Sockets lie
        # in it, so its path is short.
        self.folders.append(tempfile.mkdtemp(prefix="node", dir="/tmp"))
        try:
            return self.cluster.add_node(num_cpus=2, temp_dir=self.folders[-1])
        finally:
            os.environ.update(hidden)

    def submit(self, job: str, *flags: str) -> subprocess.Popen[str]:
        """`ray job submit --working-dir . -- python jobs/<job>.py …`."""
        return subprocess.Popen(
            [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{job}.py", *flags],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": self.dashboard},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ray(self, *arguments: str, address: str) -> None:
        """Another command of Ray's."""
        variables = os.environ | {"RAY_ADDRESS": address}
        subprocess.run([str(BIN / "ray"), *arguments], check=True, capture_output=True, env=variables)


@pytest.fixture(scope="module")
def nodes(s3: str) -> Iterator[Nodes]:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{BIN}:{before}"
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()
        for folder in nodes.folders:
            shutil.rmtree(folder, ignore_errors=True)
        os.environ["PATH"] = before


def finish(process: subprocess.Popen[str]) -> str:
    """What a job says until it ends well."""
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def steps(run: str) -> dict[str, list[int]]:
    return {stage: [line["step"] for line in history.read(run + "/metrics", stage)] for stage in ("vqvae", "dcgan")}


@pytest.fixture(scope="module")
def data_on_s3(nodes: Nodes, raw: Path, s3: str, data: DataSet) -> str:
    """The virtual subjects, packed from S3 to S3 by a submitted job."""
    system, path = storage.resolve(s3)
    pyarrow.fs.copy_files(str(raw), f"{path}/raw", destination_filesystem=system)
    said = finish(nodes.submit("pack", "--source", f"{s3}/raw", "--out", f"{s3}/datasets/phantom"))
    assert "train: 96 slices of 3 cases" in said
    (package,) = Path(nodes.cluster.head_node.get_session_dir_path()).glob("runtime_resources/*/_ray_pkg_*/")
    carried = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {file.relative_to(package).parts[0] for file in carried} >= {"jobs", "oasisgen"}
    assert not (package / "tests").exists()
    assert sum(file.stat().st_size for file in carried) < 500_000
    packed = storage.read_json(f"{s3}/datasets/phantom/dataset.json")
    assert packed["fingerprint"] == data.fingerprint  # byte for byte what local storage got
    return f"{s3}/datasets/phantom"


def test_training_is_submitted_stopped_and_submitted_again(
    nodes: Nodes, data_on_s3: str, s3: str, trained: Path
) -> None:
    """On two nodes, one worker each; `ray job stop` after the first epoch."""
    run = f"{s3}/runs/submitted"
    flags = [*tiny_flags(data_on_s3, run), *ONE_PER_NODE]
    process = nodes.submit("train", *flags)
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if "vqvae] epoch 1/2" in line and "SSIM" in line:
            break
    found = re.search(r"raysubmit_\w+", said)
    assert found, said
    nodes.ray("job", "stop", found[0], address=nodes.dashboard)
    process.communicate()
    assert not storage.exists(f"{run}/model")

    said = finish(nodes.submit("train", *flags))
    assert "vqvae] epoch 1/2" not in said
    assert steps(run) == steps(str(trained))
    for stage, loss in (("vqvae", "reconstruction_loss"), ("dcgan", "discriminator_loss")):
        mine, theirs = (history.read(folder + "/metrics", stage)[-1][loss] for folder in (run, str(trained)))
        assert mine == pytest.approx(theirs, rel=0.02)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    written = [storage.join(run, name) for name, _ in storage.list_files(run)]
    assert not [uri for uri in written if secret.encode() in storage.read_bytes(uri)]
    session = Path(nodes.cluster.head_node.get_session_dir_path())
    logs = [file for file in session.glob("logs/**/*") if file.is_file()]
    assert not [file for file in logs if secret.encode() in file.read_bytes()]


def test_slices_from_the_same_bundle_are_the_same_bytes(
    nodes: Nodes, data_on_s3: str, s3: str, trained: Path, tmp_path: Path
) -> None:
    system, path = storage.resolve(s3)
    pyarrow.fs.copy_files(str(trained / "model"), f"{path}/model", destination_filesystem=system)
    flags = ["--model", f"{s3}/model", "--data", data_on_s3, "--count", "40"]
    batch = f"{s3}/batches/night"
    said = finish(nodes.submit("generate", *flags, "--out", batch, "--link-hours", "1"))
    assert "report/index.html?X-Amz-" in said
    local = run_job("generate", "--model", str(trained), "--count", "40", "--out", str(tmp_path / "night"))
    assert local.returncode == 0, local.stderr
    pyarrow.fs.copy_files(f"{path}/batches/night", str(tmp_path / "copy"), source_filesystem=system)
    assert digests(tmp_path / "copy", "*.png") == digests(tmp_path / "night", "*.png")
    assert len(digests(tmp_path / "copy", "*.png")) == 40


def test_a_killed_node_costs_no_step(nodes: Nodes, data_on_s3: str, s3: str) -> None:
    """A worker's node dies in the middle of an epoch and another one joins: the run goes on by itself."""
    run = f"{s3}/runs/killed-node"
    flags = [*tiny_flags(data_on_s3, run), *LONG_EPOCHS, *ONE_PER_NODE, "--checkpoint-seconds", "2"]
    process = start_job("train", *flags, RAY_ADDRESS=nodes.cluster.address)
    wait_for_steps(run, 48)
    time.sleep(1)
    nodes.cluster.remove_node(nodes.workers.pop(), allow_graceful=False)
    nodes.workers.append(nodes.add())
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    assert steps(run) == {"vqvae": [48, 96], "dcgan": [6, 12]}


def test_a_node_about_to_go_saves_at_once(nodes: Nodes, data_on_s3: str, s3: str) -> None:
    """Ray's own notice, with no checkpoint due for a long time: one is written in the middle of the epoch."""
    run = f"{s3}/runs/preempted"
    flags = [*tiny_flags(data_on_s3, run), *LONG_EPOCHS, *ONE_PER_NODE, "--checkpoint-seconds", "1000"]
    process = start_job("train", *flags, RAY_ADDRESS=nodes.cluster.address)
    wait_for_steps(run, 48)
    leaving = nodes.workers.pop()
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds"]
    nodes.ray("drain-node", "--node-id", leaving.node_id, *reason, "30", address=nodes.cluster.address)
    saved = wait_for_checkpoint(run)
    assert 48 < saved < 96
    nodes.cluster.remove_node(leaving, allow_graceful=False)
    nodes.workers.append(nodes.add())
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    assert steps(run) == {"vqvae": [48, 96], "dcgan": [6, 12]}


def wait_for_steps(run: str, step: int) -> None:
    """Wait until a stage-1 epoch that ends with `step` is over."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if storage.exists(f"{run}/metrics/vqvae.jsonl") and history.read(f"{run}/metrics", "vqvae")[-1]["step"] >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached")


def wait_for_checkpoint(run: str) -> int:
    """Wait until Ray Train's newest checkpoint of stage 1 is not of an epoch's end; its step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        snapshot = storage.read_json(f"{run}/vqvae/checkpoint_manager_snapshot.json")
        step = snapshot["latest_checkpoint_result"]["metrics"]["step"]
        if step % 48:
            return step
        time.sleep(0.2)
    raise AssertionError("nothing was saved in the middle of the epoch")
