"""Clean up after a Ray that this process started: end its processes and, unless something failed, remove its files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

SECONDS_TO_END = 5.0  # for processes, after Ray has told them to


def started() -> list[psutil.Process]:
    """The processes of Ray that this one started with `ray.init`; none where it found a cluster.

    Workers are among them: they are the raylet's children.
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
    """Where the Ray that this process started keeps its logs and sockets; None where it found a cluster."""
    node = ray._private.worker._global_node
    return Path(node.get_session_dir_path()) if node and node.all_processes else None


def end(processes: list[psutil.Process]) -> None:
    """Wait some seconds for processes to end, and kill those that have not; at once upon Ctrl-C or SIGTERM.

    A process is known by its number and the time it began: another one that has got the number is left alone.
    """
    try:
        psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=SECONDS_TO_END)


@contextmanager
def seen_out() -> Iterator[None]:
    """Disconnect from Ray at the end; where this process started it, none of its processes outlives that.

    Its session's folder goes, too, unless something failed: then Ray's logs in it may tell why.
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
    """Remove a session's folder, and Ray's link to the latest session where it is this one."""
    latest = folder.parent / "session_latest"
    if latest.is_symlink() and latest.resolve() == folder.resolve():
        latest.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
