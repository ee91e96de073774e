"""Shared pieces: one Ray for the whole session, a small packed data set, and a way to run jobs as a user does."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import ray
import tyro
from filelock import FileLock
from moto.server import ThreadedMotoServer
from PIL import Image

from oasisgen import cluster, storage
from oasisgen.config.folder import SOFTWARE
from oasisgen.config.generate import GateConfig
from oasisgen.config.pack import PackConfig
from oasisgen.config.presets import PRESETS
from oasisgen.config.train import TrainConfig
from oasisgen.data.description import DataSetDescription
from oasisgen.data.pack import pack
from oasisgen.data.phantom import write_phantoms
from oasisgen.data.slices import DataSet, open_data_set
from oasisgen.lock import Lock, acquire
from oasisgen.metrics.bootstrap import Interval
from oasisgen.models.scores import BundleMetrics, MeasuredData, ReconstructionScores
from oasisgen.sampling.request import BatchRequest

ROOT = Path(__file__).parents[1]
NUMBER = Interval(0.5, 0.4, 0.6)
SCORES = ReconstructionScores(MeasuredData("d", "f"), "validate", 2, 1, NUMBER, NUMBER, 3, 1.0, 2.0)
METRICS = BundleMetrics(SCORES, (1, 0, 5))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need Ray come first: they take the longest, and processes that share the tests should end together."""
    items.sort(key=lambda item: "connected" not in item.fixturenames)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A folder of our own on an S3 server: the real one that the AWS variables and S3_TEST_BUCKET name, else moto's."""
    with ExitStack() as stack:
        if "S3_TEST_BUCKET" not in os.environ:
            server = ThreadedMotoServer("127.0.0.1", 0)
            server.start()
            stack.callback(server.stop)
            host, port = server.get_host_and_port()
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
                os.environ.pop(name, None)
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ACCESS_KEY_ID": "moto",
                "AWS_SECRET_ACCESS_KEY": "a-secret-of-moto",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "S3_TEST_BUCKET": "tests-on-moto",
            }
            boto3.client("s3").create_bucket(Bucket=os.environ["S3_TEST_BUCKET"])
        folder = f"s3://{os.environ['S3_TEST_BUCKET']}/{uuid.uuid4().hex[:12]}"
        yield folder
        system, path = storage.resolve(folder)
        system.delete_dir_contents(path, missing_dir_ok=True)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, on disk and then on S3."""
    if request.param == "disk":
        return str(tmp_path)
    return storage.join(request.getfixturevalue("s3"), uuid.uuid4().hex[:12])


@pytest.fixture(scope="session")
def connected(s3: str) -> Iterator[str]:
    """A Ray of our own on this machine; its address, which jobs started as processes find in RAY_ADDRESS."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = "local"
    with cluster.connection():
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        yield os.environ["RAY_ADDRESS"]
    os.environ.pop("RAY_ADDRESS")
    if before:
        os.environ["RAY_ADDRESS"] = before


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what all processes of these tests use, and one of them makes (see `once`)."""
    if folder := os.environ.get("OASISGEN_TESTS_FOLDER"):
        return Path(folder)
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, made by the first process that wants it."""
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def raw(connected: str, shared: Path) -> Path:
    """Raw folders of five virtual subjects."""
    return once(shared / "raw", lambda folder: write_phantoms(str(folder), {"train": 3, "validate": 2}, seed=0))


@pytest.fixture(scope="session")
def data(raw: Path, shared: Path) -> DataSet:
    """The virtual subjects, packed: 96 slices to train on, 64 to validate on."""
    return open_data_set(str(once(shared / "phantom", lambda folder: pack(PackConfig(str(raw), str(folder))))))


def described(**changed: Any) -> DataSetDescription:
    """What a data set of no slices says of itself, but for what is `changed`."""
    nothing: dict[str, Any] = {"source": "raw", "source_fingerprint": "f", "fingerprint": "f", "rejected": ()}
    return DataSetDescription(**(nothing | {"image_size": (256, 256), "splits": {}} | changed))


def requested(**changed: Any) -> BatchRequest:
    """A request of 40 slices of all levels, but for what is `changed`."""
    usual: dict[str, Any] = {"model": "m", "base_seed": 0, "count": 40, "levels": tuple(range(32)), "ids": None}
    usual |= {"precision": "bfloat16", "format": "png", "reject": "none", "part_size": 1000, "gate": GateConfig()}
    return BatchRequest(**(usual | {"data_fingerprint": None, "inception": None, "software": SOFTWARE} | changed))


def tiny_flags(data: DataSet | str, out: Path | str) -> list[str]:
    """A training job of a few seconds, as flags: 6 steps of each stage in each of 2 epochs."""
    flags = "--vqvae.channels 16 --vqvae.residual-channels 8 --vqvae.crop 64 --vqvae.validate-slices 8"
    flags += " --vqvae.batch-size 16 --vqvae.epochs 2"
    flags += " --prior dcgan --dcgan.channels 8 --dcgan.components 8 --dcgan.batch-size 16 --dcgan.epochs 2"
    flags += " --features.epochs 1 --labels.channels 8 --labels.batch-size 16 --labels.epochs 1"
    return ["demo", "--data", data if isinstance(data, str) else data.uri, "--out", str(out), *flags.split()]


def tiny(data: DataSet, out: Path | str) -> TrainConfig:
    """The same job as a configuration."""
    return tyro.extras.overridable_config_cli(PRESETS, args=tiny_flags(data, out))


@pytest.fixture(scope="session")
def trained(data: DataSet, shared: Path) -> Path:
    """A finished tiny run, trained by jobs/train.py without a break."""

    def make(out: Path) -> None:
        finished = run_job("train", *tiny_flags(data, out))
        assert finished.returncode == 0, finished.stderr

    return once(shared / "tiny", make)


@pytest.fixture(scope="session")
def batch(trained: Path, shared: Path) -> Path:
    """Forty slices of that run, made by jobs/generate.py; nobody would release them."""

    def make(out: Path) -> None:
        done = run_job("generate", "--model", str(trained), "--out", str(out), "--count", "40", "--base-seed", "5")
        assert done.returncode == 3, done.stderr

    (shared / "batches").mkdir(exist_ok=True)
    return once(shared / "batches" / "night", make)


def start_job(name: str, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """Start `python jobs/<name>.py …` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *flags],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # CI may run us with it ignored
    )


def run_job(name: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python jobs/<name>.py …` to its end."""
    process = start_job(name, *flags, **environment)
    stdout, stderr = process.communicate(timeout=1100)  # only a job that hangs takes so long
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """Path below `folder` -> sha256 of every file whose name matches."""
    files = sorted(file for file in folder.rglob(pattern) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def lost_lock(folder: str) -> Lock:
    """The lock of a job that was silent until another one took `folder` over."""
    held = acquire(folder)
    other = replace(held.holder, token="of another job", generation=held.holder.generation + 1)
    storage.write_bytes(held.uri, other.to_json())
    return held


def one_line(text: str) -> str:
    """The only line of a text."""
    (line,) = text.strip().splitlines()
    return line


def png(image: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def oasis() -> Path:
    """The real slices' folder; skips where OASISGEN_OASIS_DIR does not name one."""
    folder = os.environ.get("OASISGEN_OASIS_DIR")
    if not folder:
        pytest.skip("OASISGEN_OASIS_DIR is not set: no real slices")
    return Path(folder)
