"""Half an hour of bad luck: `make soak`. Runs and batches on a real S3 server, disturbed in every way we know.

The server is the one that AWS's variables and S3_TEST_BUCKET name. Jobs reach it through a proxy that refuses, slows
down, and cuts connections; their processes are killed and stopped, and sometimes a second job takes over. What is left
must be what an undisturbed job makes, byte for byte: nothing missing, nothing twice, nothing besides.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from oasisgen import storage
from tests.conftest import run_job, start_job, tiny_flags
from tests.proxy import Proxy, proxy

COUNT, PART_SIZE = 320, 32
DISTURBED = 6  # attempts at a job; after them it may end in peace, but for the proxy
OVER = (0, 3)  # exit statuses of a job that is complete: a batch may be quarantined
# They name the time, the place or a digest of these.
UNEQUAL = ("config.json", "lock.json", "summary.json", "index.html", "README.md", "metrics.json")


@dataclass
class Soak:
    """What was done to the jobs, and what they did wrong."""

    random: random.Random
    root: str
    server: Proxy
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def fault(self, method: str, path: str) -> str | None:
        """What happens to a request: mostly nothing, and now and then a short outage."""
        if time.monotonic() % 60 < 4:
            return "503 SlowDown"
        chance = self.random.random()
        for fault, upper in (("503 SlowDown", 0.01), ("500 InternalError", 0.02), ("slow", 0.03), ("cut", 0.035)):
            if chance < upper:
                return fault
        return "hang up" if chance < 0.04 and method == "PUT" else None

    def complete(self, name: str, *flags: str) -> None:
        """Repeat a command until its job is over, as a scheduler would."""
        for attempt in range(DISTURBED + 4):
            job = start_job(name, *flags, RAY_ADDRESS="local", **self.server.variables)
            if attempt < DISTURBED:
                job = self.disturb(job, name, flags)
            _, said = job.communicate()
            self.done[f"{name} ended with {job.returncode}"] += 1
            if "Traceback" in said:
                self.wrong.append(f"{name} {' '.join(flags)}: {said[-2000:]}")
            if job.returncode in OVER:
                return
        self.wrong.append(f"{name} {' '.join(flags)} is not over after {DISTURBED + 4} attempts: {said[-500:]}")

    def disturb(self, job: subprocess.Popen[str], name: str, flags: tuple[str, ...]) -> subprocess.Popen[str]:
        """Do things to a job until it ends; returns the job that is then at work, which may be another one."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                job.wait(self.random.uniform(5, 20))
                return job
            deed = self.random.choice(["kill a worker", "kill a worker", "kill the driver", "pause", "take over"])
            self.done[deed] += 1
            family = psutil.Process(job.pid).children(recursive=True)
            if deed == "kill a worker":
                workers = [each for each in family if _title(each).startswith("ray::")]
                if workers:
                    _end(self.random.choice(workers))
            elif deed == "kill the driver":
                job.kill()
                for each in family:  # as when a pod goes
                    _end(each)
                return job
            else:
                job.send_signal(signal.SIGSTOP)
                other = start_job(name, *flags, RAY_ADDRESS="local", **self.server.variables)
                with suppress(subprocess.TimeoutExpired):
                    other.wait(self.random.uniform(5, 12) if deed == "pause" else 120)
                job.send_signal(signal.SIGCONT)
                if deed == "take over":
                    job.communicate()
                    self.done[f"a {name} that was taken over ended with {job.returncode}"] += 1
                    return other
                other.communicate()

    def compare(self, calm: str, storm: str) -> None:
        """Both folders must hold the same names and, but for those in UNEQUAL, the same bytes."""
        left, right = ({name for name, _ in storage.list_files(uri)} for uri in (calm, storm))
        if left != right:
            self.wrong.append(f"{storm} has {sorted(right - left)[:5]}, lacks {sorted(left - right)[:5]}")
        for name in sorted(left & right):
            if not any(part in name for part in UNEQUAL):
                a, b = (storage.read_bytes(storage.join(uri, name)) for uri in (calm, storm))
                if a != b:
                    self.wrong.append(f"{storm}/{name} differs from the one of an undisturbed job")


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _end(process: psutil.Process) -> None:
    with suppress(psutil.Error):
        process.kill()


def must(name: str, *flags: str) -> None:
    """Run a job that nobody disturbs."""
    done = run_job(name, *flags, RAY_ADDRESS="local")
    assert done.returncode in OVER, done.stderr


def model(run: str) -> str:
    """The part of a run that must be equal: its bundle."""
    return storage.join(run, "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bucket = os.environ.get("S3_TEST_BUCKET")
    if not bucket:
        sys.exit("soak: needs a real S3 server: set S3_TEST_BUCKET and AWS's variables")
    root = f"s3://{bucket}/soak-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as raw, proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        must("phantom", "--out", raw, "--train", "3", "--validate", "2", "--test", "0")
        must("pack", "--source", raw, "--out", f"{root}/datasets/calm")
        must("train", *tiny_flags(f"{root}/datasets/calm", f"{root}/runs/calm"))
        batch = ["--model", f"{root}/runs/calm", "--count", str(COUNT), "--part-size", str(PART_SIZE), "--base-seed"]
        soak = Soak(random.Random(arguments.seed), root, server)
        server.fault = soak.fault
        until, turn = time.monotonic() + 60 * arguments.minutes, 0
        while time.monotonic() < until and not soak.wrong:
            turn += 1
            calm, storm = f"{root}/batches/calm-{turn}", f"{root}/batches/storm-{turn}"
            must("generate", *batch, str(turn), "--out", calm)
            soak.complete("generate", *batch, str(turn), "--out", storm)
            must("generate", "--verify", storm)
            soak.compare(calm, storm)
            if turn % 2:
                data, run = f"{root}/datasets/storm-{turn}", f"{root}/runs/storm-{turn}"
                soak.complete("pack", "--source", raw, "--out", data)
                soak.complete("train", *tiny_flags(data, run), "--checkpoint-seconds", "2")
                soak.compare(f"{root}/datasets/calm", data)  # with its feature network
                soak.compare(model(f"{root}/runs/calm"), model(run))
            print(f"turn {turn}: {dict(soak.done)}, {len(server.faults)} requests disturbed", flush=True)
        faults = Counter(text.split(" ", 2)[2] for text in server.faults)
        print(f"{turn} turns; requests: {dict(faults)}; processes: {dict(soak.done)}")
        system, path = storage.resolve(root)
        system.delete_dir(path)
    if soak.wrong:
        sys.exit("soak: " + "\nsoak: ".join(soak.wrong))
    print("everything that was disturbed is what an undisturbed job makes, byte for byte")


if __name__ == "__main__":
    main()
