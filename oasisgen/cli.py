"""What all jobs share: parsing flags, reporting an error in one line, and the exit status."""

import io
import json
import os
import re
import select
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TypeVar

import tyro

from oasisgen import address, process_state
from oasisgen.errors import UserError
from oasisgen.progress import printable
from oasisgen.stderr import without_ray_lines

T = TypeVar("T")
ADDRESSES = (  # the flags of all jobs whose value is a URI
    *("source", "splits", "table", "data", "model", "inception", "out", "verify", "batch"),
)


def parse(parser: Callable[[list[str]], T], job: str) -> T:
    """Parse the command line with `parser` (a tyro call); a usage error prints one line and exits with status 2."""
    said = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    try:
        with redirect_stderr(said):
            flags = parser(sys.argv[1:])
    except BrokenPipeError:
        _be_silent()
        raise SystemExit(0) from None
    except SystemExit as stop:
        if not stop.code:
            if not _is_heard():  # `--help | head -1`
                _be_silent()
            raise
        said.seek(0)
        print(f"{job}: {_one_line(said.read())} (see {job} --help)", file=sys.stderr)
        raise SystemExit(2) from None
    except ValueError as error:
        print(f"{job}: {error} (see {job} --help)", file=sys.stderr)
        raise SystemExit(2) from None
    for name in ADDRESSES:
        uri = getattr(flags, name, None)
        if uri is not None and (fault := _wrong_address(uri)):
            print(f"{job}: {name} is {fault}", file=sys.stderr)
            raise SystemExit(2)
    return flags


def _wrong_address(uri: str) -> str:
    """Why a job cannot use `uri` as an address, in one line that starts with `uri`; empty if it can."""
    try:
        address.parse(uri)
    except UserError as error:
        return line_of(error)
    if is_submitted() and "://" not in uri and not os.path.isabs(uri):
        return f"{uri}: a submitted job runs in Ray's own folder: give s3://… or an absolute path that every node has"
    return ""


def _is_heard() -> bool:
    """Whether the reader of standard output is still there."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    pipe = select.poll()  # a second flush has nothing to write, so it would not fail
    pipe.register(sys.stdout.fileno(), select.POLLERR)
    return not pipe.poll(0)


def _be_silent() -> None:
    """Send standard output to /dev/null: flushing its buffer at exit would end in a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_submitted() -> bool:
    """Whether `ray job submit` started this process: on the cluster, in a copy of the working directory."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return "job_submission_id" in job.get("metadata", {})


def _one_line(boxed: str) -> str:
    """Reduce tyro's boxes of several paragraphs to the reason, the choices, and the flag that it suggests."""
    text = re.sub(r"[╭╰][^\n]*|│", "", boxed)
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"─{3,}", text)]
    chosen = [paragraphs[0]]
    for paragraph in paragraphs[1:]:
        if paragraph.startswith(("Available subcommands", "Unrecognized options")):
            chosen.append(paragraph)
        elif meant := re.match(r"Perhaps you meant: (--[\w.-]+)", paragraph):
            chosen.append(f"perhaps you meant {meant[1]}")
    # Drop tyro's prefix where a check in __post_init__ already names the field.
    return re.sub(r"Error parsing \S+: (?=\S+ is )", "", "; ".join(chosen))


def line_of(error: BaseException) -> str:
    """The message of an error in one line, with control characters escaped: it may quote an untrusted file."""
    return printable(" ".join(str(error).split()))


def run(job: Callable[[], None], name: str, continues: bool = True) -> None:
    """Call `job`; a UserError prints one line and exits with status 1, Ctrl-C or SIGTERM with 130.

    A closed output pipe, as in `job | head -1`, also ends the job: one line, status 1. `continues`: a job that was
    interrupted continues when its command is run again.
    """
    hint = "run the same command again to continue" if continues else "the same command starts over"
    try:
        with without_ray_lines(), process_state.sigterm_handler():
            process_state.interrupt_on_sigterm()
            job()
    except UserError as error:
        print(f"{name}: {line_of(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:
        if _is_heard():  # another pipe broke
            raise
        _be_silent()
        print(f"{name}: its output pipe was closed; {hint}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {hint}", file=sys.stderr)
        raise SystemExit(130) from None


def flags(kind: type[T]) -> Callable[[list[str]], T]:
    """A parser for a dataclass of flags."""
    return lambda arguments: tyro.cli(kind, args=arguments)
