"""Jobs on a cluster with a GPU that another job holds. The GPU is pretended: Ray counts it, PyTorch finds none."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from oasisgen.data.slices import DataSet
from tests.conftest import ROOT, one_line, run_job, start_job, tiny_flags

BUSY = """
import sys, ray, torch
from oasisgen import actor, cluster
from oasisgen.config.generate import GenerateConfig
from oasisgen.errors import UserError
from oasisgen.pipelines.generate import generate

@ray.remote(num_cpus=0, num_gpus=1)
class Other:
    def there(self):
        return True

@ray.remote(num_cpus=0)
def device():
    torch.cuda.is_available = lambda: True  # as on a machine with GPUs, which every process there sees
    return actor.device()

with cluster.connection():
    print(*ray.get([device.remote(), device.options(num_gpus=1).remote()]))
    other = Other.remote()
    ray.get(other.there.remote())
    for gpus in (None, 0):
        try:
            made = generate(GenerateConfig(sys.argv[1], sys.argv[2], count=4, measure=False, gpus_per_sampler=gpus))
            print(made.slices, "slices")
        except UserError as error:
            print(error)
"""
HOLD = """
import ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=0, num_gpus=1)
class Other:
    def there(self):
        return True
other = Other.remote()
print(ray.get(other.there.remote()), flush=True)
input()
"""


@pytest.mark.slow
def test_a_busy_gpu_is_named_and_cpus_can_be_asked_for(trained: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUSY, str(trained), str(tmp_path / "night")],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "local", "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "GPU": 1})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    devices, refused, *_, made = done.stdout.splitlines()
    assert devices == "cpu cuda"  # what Ray reserved for each
    assert "a model actor (0.75 CPUs, 1 GPU), a reading and a writing task do not fit" in refused
    assert "0 of 1 GPUs are free: wait for other jobs (--wait-minutes), or use CPUs (--gpus-per-sampler 0)" in refused
    assert made == "4 slices"


@pytest.fixture
def busy() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a cluster of 2 CPUs and a GPU, and the job that holds the GPU until it is told to end."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"RAY_ADDRESS": nodes.address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout
    assert other.stdout.readline() == "True\n"
    try:
        yield nodes.address, other
    finally:
        other.communicate("")
        nodes.shutdown()


@pytest.mark.infra
def test_a_job_waits_for_the_gpu_that_another_job_holds(
    busy: tuple[str, subprocess.Popen[str]], trained: Path, tmp_path: Path
) -> None:
    address, other = busy
    flags = ["--model", str(trained), "--out", str(tmp_path / "night"), "--count", "4", "--no-measure"]
    job = start_job("generate", *flags, "--wait-minutes", "5", RAY_ADDRESS=address)
    assert job.stdout
    waits = job.stdout.readline()
    assert re.search(r"\[ +wait\] for a model actor .*, 0 of 1 GPUs are free", waits)
    other.communicate("")
    said, wrong = job.communicate(timeout=300)
    assert (job.returncode, "4 slices" in said) == (3, True), wrong


@pytest.mark.infra
@pytest.mark.usefixtures("trained")  # the first run of the data set, which trains its feature network
def test_a_run_and_an_evaluation_on_cpus_leave_the_gpu_alone(
    busy: tuple[str, subprocess.Popen[str]], data: DataSet, tmp_path: Path
) -> None:
    address, _ = busy
    run = tmp_path / "run"
    done = run_job("train", *tiny_flags(data, run), RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
    flags = ["--model", str(run), "--data", data.uri, "--out", str(tmp_path / "e")]
    refused = run_job("evaluate", *flags, RAY_ADDRESS=address)
    assert (refused.returncode, "or use CPUs (--gpus-per-worker 0)" in one_line(refused.stderr)) == (1, True)
    done = run_job("evaluate", *flags, "--gpus-per-worker", "0", RAY_ADDRESS=address)
    assert done.returncode == 0, done.stderr
