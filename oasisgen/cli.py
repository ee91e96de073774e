"""What all jobs share: flags in, one clear line out when something is wrong, and the exit status."""

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
ADDRESSES = ("source", "data", "model", "inception", "out", "verify")  # flags of all jobs that are URIs


def parse(parser: Callable[[list[str]], T], job: str) -> T:
    """The command line as `parser` (a tyro call) reads it; a wrong one ends in one line and exit status 2."""
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
    """Why a job cannot take `uri` as an address, in one line that begins with it; empty if it can."""
    try:
        address.parse(uri)
    except UserError as error:
        return line_of(error)
    if is_submitted() and "://" not in uri and not os.path.isabs(uri):
        return f"{uri}: a submitted job runs in a folder of Ray's, name s3://… or an absolute path that every node has"
    return ""


def _is_heard() -> bool:
    """Whether somebody still reads standard output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    pipe = select.poll()  # after an error nothing is left to flush
    pipe.register(sys.stdout.fileno(), select.POLLERR)
    return not pipe.poll(0)


def _be_silent() -> None:
    """Send standard output nowhere: what is still in its buffer would be a traceback at the process's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_submitted() -> bool:
    """Whether `ray job submit` started this process: on the cluster, in a copy of the working directory."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return "job_submission_id" in job.get("metadata", {})


def _one_line(boxed: str) -> str:
    """tyro explains in boxes of several paragraphs: keep the reason, the choices, and the flag it thinks was meant."""
    text = re.sub(r"[╭╰][^\n]*|│", "", boxed)
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"─{3,}", text)]
    chosen = [paragraphs[0]]
    for paragraph in paragraphs[1:]:
        if paragraph.startswith(("Available subcommands", "Unrecognized options")):
            chosen.append(paragraph)
        elif meant := re.match(r"Perhaps you meant: (--[\w.-]+)", paragraph):
            chosen.append(f"perhaps you meant {meant[1]}")
    # A check in __post_init__ names its field itself.
    return re.sub(r"Error parsing \S+: (?=\S+ is )", "", "; ".join(chosen))


def line_of(error: BaseException) -> str:
    """What an error says, in one line that a terminal only shows: what stands in somebody's file may be part of it."""
    return printable(" ".join(str(error).split()))


def run(job: Callable[[], None], name: str) -> None:
    """Call `job`; a UserError ends in one line and exit status 1, Ctrl-C or SIGTERM in one line and 130.

    A job whose output nobody reads any more ends too, as programs do in `job | head -1`: with one line and status 1.
    """
    try:
        with without_ray_lines(), process_state.sigterm_handler():
            process_state.interrupt_on_sigterm()
            job()
    except UserError as error:
        print(f"{name}: {line_of(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:
        if _is_heard():  # it was another pipe
            raise
        _be_silent()
        print(f"{name}: nobody reads its output; the same command continues where it was", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues where it was", file=sys.stderr)
        raise SystemExit(130) from None


def flags(kind: type[T]) -> Callable[[list[str]], T]:
    """A parser for a dataclass of flags."""
    return lambda arguments: tyro.cli(kind, args=arguments)
