"""Keep the lines of Ray's C++ core out of a job's output.

The core writes them straight to the process's standard error, bypassing Python and its log level: one for every actor
pool of Ray Data, whose arguments are always in the object store. A user can do nothing about them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# The filter runs in its own process, so that lines that this process writes while it crashes still arrive.
FILTER = r"""
import re, sys
ray_line = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] \(?.*\.(cc|h):\d+: ")
for line in sys.stdin.buffer:
    if not ray_line.match(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""
SECONDS_TO_END = 2.0  # for the last lines; a child process may keep the pipe open for longer


@contextmanager
def without_ray_lines() -> Iterator[None]:
    """Drop the lines of Ray's core from standard error while the body runs; everything else passes.

    Replaces the process's file descriptor 2, and restores it at the end.
    """
    original = os.dup(2)
    # In its own session, the filter does not receive the terminal's Ctrl-C; it exits when the pipe is closed.
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", FILTER], stdin=subprocess.PIPE, stdout=original, start_new_session=True
    ) as passing_on:
        assert passing_on.stdin
        os.dup2(passing_on.stdin.fileno(), 2)
        passing_on.stdin.close()
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)  # closes our end of the pipe
            os.close(original)
            with suppress(subprocess.TimeoutExpired):
                passing_on.wait(SECONDS_TO_END)
            passing_on.returncode = passing_on.returncode or 0  # it exits with the last process that has the pipe open
