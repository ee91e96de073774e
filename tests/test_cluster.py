"""The jobs on a Ray cluster of three nodes, everything on S3: submitted, stopped, and losing nodes."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyarrow.fs
import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from oasisgen import cluster, storage
from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.training import history
from tests.conftest import ROOT, digests, tiny_flags

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BIN = Path(sys.executable).parent
ONE_PER_NODE = ["--workers", "2", "--cpus-per-worker", "1.25"]  # two of these do not fit on a node of 2 CPUs
LONG_EPOCHS = ["--vqvae.channels", "64", "--vqvae.batch-size", "2", "--vqvae.epochs", "6"]  # 48 steps, some seconds

READ_AND_LOAD = """
import sys, ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from oasisgen import cluster
from oasisgen.data.feed import store
from oasisgen.data.slices import open_data_set, read_slices

@ray.remote(num_cpus=1.25)
class Trainer:
    def load(self, stored):
        return len(stored.load())

with cluster.connection():
    stored = store(read_slices(open_data_set(sys.argv[1]), "train"))
    print("read", flush=True)
    input()
    group = PlacementGroupSchedulingStrategy(placement_group([{"CPU": 1.25}] * 2))
    trainers = [Trainer.options(scheduling_strategy=group).remote() for _ in range(2)]
    print(ray.get([trainer.load.remote(stored) for trainer in trainers], timeout=240))
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for_listener(port: int) -> None:
    """Return once something listens on the port, on any address of this machine."""
    addresses = {"127.0.0.1", socket.gethostbyname(socket.gethostname())}
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for address in addresses:
            with suppress(OSError), socket.create_connection((address, port), timeout=1):
                return
        time.sleep(0.5)
    raise AssertionError(f"nothing listens on port {port}")


class Nodes:
    """A head without CPUs that may use S3, and workers that learn how from the driver alone."""

    def __init__(self) -> None:
        for name in cluster.ALONE:  # the other Ray of these tests
            os.environ.pop(name, None)
        port, agent_port = free_ports(2)  # this machine's other Ray has the usual ones
        self.dashboard = f"http://127.0.0.1:{port}"
        head = {"include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": agent_port}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **head})
        self.folders: list[str] = []
        self.workers = [self.add(), self.add()]
        wait_for_listener(agent_port)  # the head waits only 10 s for its agent when a job is submitted

    @property
    def session(self) -> str:
        """The head's folder of logs and packages."""
        assert self.cluster.head_node is not None
        return str(self.cluster.head_node.get_session_dir_path())

    def add(self) -> Node:
        """One more node of 2 CPUs."""
        with self.surroundings() as folder:
            return self.cluster.add_node(num_cpus=2, temp_dir=folder, node_ip_address=self.address())

    def join(self) -> subprocess.Popen[bytes]:
        """One more, as an administrator or Kubernetes starts it."""
        with self.surroundings() as folder:
            command = [str(BIN / "ray"), "start", "--address", self.cluster.address, "--num-cpus", "2", "--block"]
            command += ["--temp-dir", folder, "--node-ip-address", self.address()]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def address(self) -> str:
        """An address of its own for the next node: a driver belongs to the node that has its address."""
        return f"127.0.0.{1 + len(self.folders)}"

    @contextmanager
    def surroundings(self) -> Iterator[str]:
        """An environment that knows nothing of S3, and a folder: nodes that share one replace each other's copy of the
        working directory. Sockets lie in it, so its path is short."""
        hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
        self.folders.append(tempfile.mkdtemp(prefix="node", dir="/tmp"))
        try:
            yield self.folders[-1]
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
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def data_on_s3(nodes: Nodes, raw: Path, s3: str, data: DataSet, trained: Path) -> str:
    """The virtual subjects, packed from S3 to S3 by a submitted job, with the feature network that a run trained."""
    system, path = storage.resolve(s3)
    pyarrow.fs.copy_files(str(raw), f"{path}/raw", destination_filesystem=system)
    said = finish(nodes.submit("pack", "--source", f"{s3}/raw", "--out", f"{s3}/datasets/phantom"))
    assert "train: 96 slices of 3 cases" in said
    (package,) = Path(nodes.session).glob("runtime_resources/*/_ray_pkg_*/")
    carried = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {file.relative_to(package).parts[0] for file in carried} >= {"jobs", "oasisgen"}
    assert not (package / "tests").exists()
    assert sum(file.stat().st_size for file in carried) < 1_000_000  # docs/cluster.md says so
    packed = storage.read_json(f"{s3}/datasets/phantom/dataset.json")
    assert packed["fingerprint"] == data.fingerprint  # byte for byte what local storage got
    features, there = f"{data.uri}/features", f"{path}/datasets/phantom/features"
    pyarrow.fs.copy_files(features, there, destination_filesystem=system)
    return f"{s3}/datasets/phantom"


def test_a_run_survives_what_clusters_do(nodes: Nodes, data_on_s3: str, s3: str) -> None:
    """On two nodes, one worker each: stopped and submitted again; in the middle of epochs a node is killed, and its
    successor gets SIGTERM, upon which a checkpoint is written at once. It ends in the same number of steps."""
    run = f"{s3}/runs/survivor"
    flags = [*tiny_flags(data_on_s3, run), *LONG_EPOCHS, *ONE_PER_NODE, "--checkpoint-seconds"]
    process = nodes.submit("train", *flags, "2")
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if "vqvae] epoch 1/6" in line:
            break
    found = re.search(r"raysubmit_\w+", said)
    assert found, said
    nodes.ray("job", "stop", found[0], address=nodes.dashboard)
    process.communicate()

    process = nodes.submit("train", *flags, "1000")
    wait_for_epoch(process, run, 2)
    time.sleep(1)
    nodes.cluster.remove_node(nodes.workers.pop(), allow_graceful=False)  # SIGKILL
    successor = nodes.join()
    wait_for_epoch(process, run, 4)
    successor.terminate()
    wait_for_checkpoint_inside_an_epoch(process, run)  # by the clock, none is due
    successor.wait()
    nodes.workers.append(nodes.add())
    finish(process)
    steps = {stage: [epoch.step for epoch in history.read(f"{run}/metrics", stage)] for stage in ("vqvae", "dcgan")}
    assert steps == {"vqvae": [48 * epoch for epoch in range(1, 7)], "dcgan": [6, 12]}

    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    written = [storage.join(run, name) for name, _ in storage.list_files(run)]
    assert not [uri for uri in written if secret in storage.read_bytes(uri)]
    for folder in (nodes.session, *nodes.folders):
        files = [file for file in Path(folder).rglob("logs/**/*") if file.is_file()]
        assert files
        assert not [file for file in files if secret in file.read_bytes()]


def test_what_a_job_has_read_outlives_the_node_that_read_it(nodes: Nodes, data_on_s3: str) -> None:
    """Trainers hold most of all CPUs, so that nothing could be read again; Ray would wait for a whole one."""
    program = [sys.executable, "-c", READ_AND_LOAD, data_on_s3]
    variables = os.environ | {"RAY_ADDRESS": nodes.cluster.address}
    driver = subprocess.Popen(program, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout
    assert driver.stdout.readline() == "read\n"
    for node in nodes.workers:  # whichever read it
        nodes.cluster.remove_node(node, allow_graceful=False)
    nodes.workers = [nodes.add(), nodes.add()]
    said, _ = driver.communicate("go on\n", timeout=300)
    assert "[96, 96]\n" in said, said  # Ray puts in a word about the nodes


def test_slices_from_the_same_bundle_are_the_same_bytes(
    nodes: Nodes, data_on_s3: str, s3: str, trained: Path, batch: Path, tmp_path: Path
) -> None:
    system, path = storage.resolve(s3)
    pyarrow.fs.copy_files(str(trained / "model"), f"{path}/model", destination_filesystem=system)
    flags = ["--model", f"{s3}/model", "--data", data_on_s3, "--count", "40", "--base-seed", "5"]
    for name, bound in {"ssim-real": 1, "ms-ssim": 1, "fid": 1e9, "precision": 0, "recall": 0, "copies": 1}.items():
        flags += [f"--gate.{name}", str(bound)]  # the model was hardly trained
    out = f"{s3}/batches/night"
    said = finish(nodes.submit("generate", *flags, "--out", out, "--link-hours", "1"))
    assert re.search(r"report/index\.html\?\S*X-Amz-Signature=", said)
    pyarrow.fs.copy_files(f"{path}/batches/night", str(tmp_path / "copy"), source_filesystem=system)
    assert digests(tmp_path / "copy", "*.png") == digests(batch, "*.png")
    assert len(digests(tmp_path / "copy", "*.png")) == 40 + 40  # slices, and their label maps


def wait_for_epoch(job: subprocess.Popen[str], run: str, epoch: int) -> None:
    """Wait until an epoch of stage 1 is over."""
    wait_until(lambda: len(history.read(f"{run}/metrics", "vqvae")) >= epoch, job, f"epoch {epoch} did not end")


def wait_for_checkpoint_inside_an_epoch(job: subprocess.Popen[str], run: str) -> None:
    """Wait until Ray Train's newest checkpoint of stage 1 is not of an epoch's end."""

    def inside() -> bool:
        snapshot = storage.read_json(f"{run}/vqvae/checkpoint_manager_snapshot.json")
        return snapshot["latest_checkpoint_result"]["metrics"]["step"] % 48 != 0

    wait_until(inside, job, "nothing was saved inside an epoch")


def wait_until(happened: Callable[[], bool], job: subprocess.Popen[str], otherwise: str) -> None:
    """Look until it has happened while the job runs; files that are not there yet, or being replaced, count as not."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and job.poll() is None:
        with suppress(FileNotFoundError, ValueError, UserError):
            if happened():
                return
        time.sleep(0.2)
    job.terminate()
    raise AssertionError(f"{otherwise}; the job said:\n{job.communicate()[0]}")
