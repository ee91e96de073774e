"""What a job sets for its whole process, each in a context manager that puts it back.

What else changes the process says so where it stands: `precision.repeatable` (PyTorch's switches), `actor.set_up` and
`training.worker.Worker.start` (PyTorch's threads), `stderr.without_ray_lines` (file descriptor 2).
"""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set the variables among `defaults` that are not set, and unset them at the end."""
    missing = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Let some loggers, by name, report critical errors only, and hide the warnings that Ray's modules raise."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="ray")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def sigterm_handler() -> Iterator[None]:
    """Put back at the end the handler that SIGTERM has now, whatever replaces it inside: `ray.init` does, too."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does: `ray job stop` and Kubernetes send it.

    Call it inside `sigterm_handler`. Only the main thread can set a handler; others leave it as it is.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
