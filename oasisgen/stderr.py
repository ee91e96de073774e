"""Keep the lines of Ray's C++ core out of a job's output.

The core writes them to the process's standard error, past Python and past its log level: one for every pool of actors
of Ray Data, whose arguments are always in the object store. They tell a user nothing that could be mended.
"""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RAY_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] \(?.*\.(cc|h):\d+: ")
SECONDS_TO_END = 1.0  # for the last lines; a process that we started may hold the pipe for longer


@contextmanager
def without_ray_lines() -> Iterator[None]:
    """Everything that is written to standard error while the body runs still arrives, but for the lines of Ray's core.

    Replaces the process's file descriptor 2, and puts it back at the end.
    """
    reading, writing = os.pipe()
    original = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    copying = threading.Thread(target=_copy, args=(reading, original), daemon=True)
    copying.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)  # closes our end of the pipe: the thread reads what is left, and ends
        copying.join(SECONDS_TO_END)


def _copy(reading: int, original: int) -> None:
    with open(reading, "rb") as lines, open(original, "wb", buffering=0) as target:
        for line in lines:
            if not RAY_LINE.match(line):
                target.write(line)
