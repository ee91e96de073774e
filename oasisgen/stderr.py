"""Keep the lines of Ray's C++ core out of a job's output.

The core writes them to the process's standard error, past Python and past its log level: one for every pool of actors
of Ray Data, whose arguments are always in the object store. They tell a user nothing that could be mended.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# A process of its own passes the other lines on: what this one says while it crashes still arrives.
FILTER = r"""
import re, sys
ray_line = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] \(?.*\.(cc|h):\d+: ")
for line in sys.stdin.buffer:
    if not ray_line.match(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""
SECONDS_TO_END = 2.0  # for the last lines; a process that we started may hold the pipe for longer


@contextmanager
def without_ray_lines() -> Iterator[None]:
    """Everything that is written to standard error while the body runs still arrives, but for the lines of Ray's core.

    Replaces the process's file descriptor 2, and puts it back at the end.
    """
    original = os.dup(2)
    # In a session of its own, it does not get the Ctrl-C of a terminal: it ends when nobody writes any more.
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
            passing_on.returncode = passing_on.returncode or 0  # it ends with the last process that holds the pipe
