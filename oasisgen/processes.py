"""Clean up after a Ray that this process used: close what reads through it, end its processes and, unless something
failed, remove its files.
"""

import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

SECONDS_TO_END = 5.0  # for processes to exit after `ray.shutdown`


def started() -> list[psutil.Process]:
    """The Ray processes that this process started with `ray.init`; empty if it joined a cluster.

    They include the workers, which are children of the raylet.
    """
    node = ray._private.worker._global_node
    infos: list[Any] = [info for kind in node.all_processes.values() for info in kind] if node else []
    tree: list[psutil.Process] = []
    for info in infos:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(info.process.pid)
            tree += [process, *process.children(recursive=True)]
    return tree


def session_folder() -> Path | None:
    """Folder of the logs and sockets of the Ray that this process started; None if it joined a cluster."""
    node = ray._private.worker._global_node
    return Path(node.get_session_dir_path()) if node and node.all_processes else None


def end(processes: list[psutil.Process]) -> None:
    """Wait a few seconds for processes to exit, then kill the rest; Ctrl-C or SIGTERM kills them at once.

    A process is identified by PID and start time, so a new process that reuses a PID is never killed.
    """
    try:
        psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=SECONDS_TO_END)


@contextmanager
def iterators_closed() -> Iterator[None]:
    """After an error, close the iterators over Ray's data sets that the traceback keeps alive.

    Closed after Ray is gone, as the process ends, they wait for ever.
    """
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


@contextmanager
def seen_out() -> Iterator[None]:
    """Disconnect from Ray at the end, and end all processes of a Ray that this process started.

    Its session folder is removed, unless something failed: then its logs may say why.
    """
    failed = True
    try:
        yield
        failed = False
    except KeyboardInterrupt:
        failed = False
        raise
    finally:
        processes, folder = started(), session_folder()
        try:
            ray.shutdown()
        finally:
            end(processes)
            if folder and not failed:
                remove(folder)


def remove(folder: Path) -> None:
    """Remove a session folder, and Ray's `session_latest` link if it points there."""
    latest = folder.parent / "session_latest"
    if latest.is_symlink() and latest.resolve() == folder.resolve():
        latest.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
