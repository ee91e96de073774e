"""Shared pieces: one Ray for the whole session, a small packed data set, and a way to run jobs as a user does."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import tyro
from PIL import Image

from oasisgen import cluster
from oasisgen.config import PRESETS, TrainConfig
from oasisgen.data.pack import pack
from oasisgen.data.phantom import write_phantoms
from oasisgen.data.slices import DataSet, open_data_set

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def connected() -> Iterator[str]:
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
def raw(connected: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw folders of five virtual subjects."""
    folder = tmp_path_factory.mktemp("raw")
    write_phantoms(str(folder), {"train": 3, "validate": 2}, seed=0)
    return folder


@pytest.fixture(scope="session")
def data(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """The virtual subjects, packed: 96 slices to train on, 64 to validate on."""
    uri = str(tmp_path_factory.mktemp("datasets") / "phantom")
    pack(str(raw), uri)
    return open_data_set(uri)


def tiny_flags(data: DataSet, out: Path) -> list[str]:
    """A training job of a few seconds, as flags: 6 steps of each stage in each of 2 epochs."""
    flags = "--vqvae.channels 16 --vqvae.residual-channels 8 --vqvae.crop 64 --vqvae.epochs 2 --vqvae.validate-slices 8"
    flags += " --dcgan.channels 8 --dcgan.components 8 --dcgan.batch-size 16 --dcgan.epochs 2"
    return ["demo", "--data", data.uri, "--out", str(out), *flags.split()]


def tiny(data: DataSet, out: Path) -> TrainConfig:
    """The same job as a configuration."""
    return tyro.extras.overridable_config_cli(PRESETS, args=tiny_flags(data, out))


@pytest.fixture(scope="session")
def trained(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, trained by jobs/train.py without a break."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    finished = run_job("train", *tiny_flags(data, out))
    assert finished.returncode == 0, finished.stderr
    return out


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
    stdout, stderr = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


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
