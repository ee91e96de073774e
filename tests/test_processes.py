"""A Ray that a job started does not outlive it; one that it found does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from oasisgen.stderr import FILTER
from tests.conftest import ROOT

# Python waits for a worker's thread before it ends, and Ray has forgotten the worker by then.
JOB = """
import os, signal, threading, time, ray
from oasisgen import cli, cluster
from oasisgen.errors import UserError

@ray.remote(num_cpus=0)
class Stubborn:
    def stay(self):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=time.sleep, args=(600,)).start()
        return os.getpid()

def job():
    with cluster.connection():
        workers = [Stubborn.remote(), Stubborn.remote()]
        print(*ray.get([worker.stay.remote() for worker in workers]), flush=True)
        workers.pop()
        print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
        how = input()
        if how == "raises":
            raise UserError("wrong")
        if how == "waits":
            time.sleep(600)

cli.run(job, "job")
"""
ENDINGS = {
    "returns": (None, 0),
    "raises": (None, 1),
    "SIGINT": (signal.SIGINT, 130),
    "SIGTERM": (signal.SIGTERM, 130),
}


class Job:
    """The job above, its stubborn workers started."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert self.process.stdout
        pids, folder = self.process.stdout.readline(), self.process.stdout.readline()
        assert folder, self.process.communicate()
        self.workers = [psutil.Process(int(pid)) for pid in pids.split()]
        self.tree = psutil.Process(self.process.pid).children(recursive=True)
        self.folder = Path(folder.strip())

    def end(self, how: str) -> str:
        """End it so; what it says on stderr."""
        sent, status = ENDINGS[how]
        assert self.process.stdin
        self.process.stdin.write("waits\n" if sent else f"{how}\n")
        self.process.stdin.flush()
        if sent:
            self.process.send_signal(sent)
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == status, said
        return said


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job("local")
    yield job
    for process in [*job.workers, *job.tree]:
        if process.is_running():
            process.kill()


@pytest.mark.parametrize(
    "how",
    [
        "returns",
        "SIGTERM",
        pytest.param("raises", marks=pytest.mark.slow),
        pytest.param("SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_job_leaves_nothing_of_its_own_ray(how: str, job: Job) -> None:
    assert set(job.workers) < set(job.tree)
    assert len(job.tree) > len(job.workers) + 2  # raylet, GCS, and others
    job.end(how)
    assert not [process for process in job.tree if process.is_running()]
    assert job.folder.exists() == (how == "raises")  # Ray's logs may say why


def test_a_ray_that_a_job_found_goes_on(connected: str) -> None:
    job = Job(connected)
    ended, stubborn = job.workers  # the first one is Ray's to end, as the job disconnects
    raylet = stubborn.parent()
    assert raylet
    assert not [process for process in job.tree if FILTER not in process.cmdline()]  # which passes stderr on
    job.end("returns")
    assert stubborn.is_running()
    assert raylet.is_running()
    assert job.folder.exists()
    for worker in (ended, stubborn):
        with suppress(psutil.NoSuchProcess):
            worker.kill()
