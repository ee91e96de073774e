"""Context managers for process-wide state that a job changes; each restores it at the end.

Other functions that change process-wide state say so in their docstrings: `precision.repeatable` (PyTorch's switches),
`actor.set_up` and `training.worker.Worker.start` (PyTorch's threads), `stderr.without_ray_lines` (file descriptor 2),
`data.images.silence_pillow` and `data.dicom_reader.pydicom_module` (warning filters).
"""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment(defaults: Mapping[str, str], fixed: Mapping[str, str] | None = None) -> Iterator[None]:
    """Set those variables of `defaults` that are not set yet, and all of `fixed`; restore them at the end."""
    changed = {name: value for name, value in defaults.items() if name not in os.environ} | dict(fixed or {})
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Limit the named loggers to critical errors, and hide warnings from Ray's modules."""
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
    """Restore the SIGTERM handler at the end, whatever replaced it inside; `ray.init` replaces it, too."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def interrupt_on_sigterm() -> None:
    """Make SIGTERM, which `ray job stop` and Kubernetes send, raise KeyboardInterrupt, as Ctrl-C does.

    Call it inside `sigterm_handler`. It does nothing outside the main thread, which alone can set a handler.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
