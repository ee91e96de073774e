"""A batch that is killed on the way, in every way, ends as if it had not been."""

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from oasisgen.config.generate import GenerateConfig
from oasisgen.pipelines import slices
from oasisgen.pipelines.generate import generate
from oasisgen.sampling.verify import verify
from tests.conftest import digests, start_job

COUNT = 192  # slices, so many that no machine makes them all between two looks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def wait_until(happened: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    """Look until it has happened, while the job runs."""
    while not happened():
        assert job.poll() is None, "the job ended before"
        time.sleep(0.1)


def workers(driver: int, stage: str) -> list[psutil.Process]:
    """Ray's processes that run a stage of the pipeline of a job with a Ray of its own."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if stage in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_batch_survives_kills_and_two_submissions(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampler, a writer and then the driver get SIGKILL; then the job is started twice at a
    time. Slices and summaries are those of a batch that nobody disturbed, and that was made in two executions."""
    monkeypatch.setattr(slices, "IDS_AT_ONCE", COUNT // 2)
    config = GenerateConfig(str(trained), str(tmp_path / "calm"), count=COUNT, part_size=32, base_seed=5)
    generate(config)
    out = tmp_path / "storm"
    flags = ["--model", str(trained), "--out", str(out), "--base-seed", "5"]
    flags += ["--count", str(COUNT), "--part-size", "32"]

    def made() -> int:
        return len(list(out.glob("slices/*/*.png")))

    job = start_job("generate", *flags, RAY_ADDRESS="local")
    for stage in ("MapBatches(Sampler", "MapBatches(SliceWriter"):
        before = made()
        wait_until(lambda: made() > before and bool(workers(job.pid, stage)), job)
        for worker in workers(job.pid, stage):
            worker.kill()
    wait_until(lambda: len(list(out.glob("summary/*"))) >= 2, job)
    family = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.communicate()
    for each in family:  # what the driver's death leaves behind ends by itself, but not at once
        with suppress(psutil.Error):
            each.kill()
    assert not (out / "manifest.json").exists()

    together = [start_job("generate", *flags) for _ in range(2)]
    said = [job.communicate()[1] for job in together]
    assert sorted(job.returncode for job in together) in ([1, 3], [3, 3]), said
    assert all(
        job.returncode == 3 or "is being worked on by" in error for job, error in zip(together, said, strict=True)
    )

    for pattern in ("*.png", "part-*.parquet"):
        assert digests(out, pattern) == digests(tmp_path / "calm", pattern)
    assert sum(part.slices for part in verify(str(out)).parts) == COUNT
