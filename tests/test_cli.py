"""A job's output where somebody stops reading it."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, one_line

JOB = """
import sys
from oasisgen import cli
from oasisgen.progress import say

def job():
    sys.stdin.read()
    say("job", "a line that nobody reads")

cli.run(job, "job.py", continues="again" in sys.argv)
"""


def with_closed_output(*command: str) -> tuple[int, str]:
    """Exit status and standard error of a process whose standard output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("flags", [("train", "full"), ("pack",)])
def test_help_whose_reader_has_read_enough_ends_quietly(flags: tuple[str, ...]) -> None:
    job, *rest = flags
    assert with_closed_output(f"jobs/{job}.py", *rest, "--help") == (0, "")


@pytest.mark.parametrize(
    ("flags", "hint"), [(("again",), "run the same command again to continue"), ((), "the same command starts over")]
)
def test_a_job_whose_reader_has_gone_ends_with_one_line(flags: tuple[str, ...], hint: str) -> None:
    status, said = with_closed_output("-c", JOB, *flags)
    assert status == 1
    assert one_line(said) == f"job.py: its output pipe was closed; {hint}"
