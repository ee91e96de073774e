"""A name in storage stands for one configuration, and one job at a time works on it."""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from oasisgen import storage
from oasisgen.config import differences
from oasisgen.errors import UserError
from oasisgen.progress import say

BEAT_SECONDS = 4
SILENT_SECONDS = 20  # after which a job that held a folder counts as dead


def claim(folder: str, settings: dict[str, Any]) -> None:
    """Write `settings` to the folder's `config.json`, or find the same there. Raises as `require_same` does."""
    if not storage.create(storage.join(folder, "config.json"), (json.dumps(settings, indent=2) + "\n").encode()):
        require_same(folder, settings)


def require_same(folder: str, settings: dict[str, Any]) -> None:
    """Raise UserError, with both values of each setting, where the folder's name stands for another configuration."""
    try:
        old = storage.read_json(storage.join(folder, "config.json"))
    except FileNotFoundError:
        return
    if changed := differences(old, settings):
        raise UserError(f"{folder} exists with other settings ({'; '.join(changed)}): use another --out")


@contextmanager
def hold(folder: str) -> Iterator[None]:
    """Hold `folder` while the body runs, so that no other job works on it.

    The holder is who created the last of the numbered files in `<folder>/holders`; it rewrites it every few seconds.
    A job that died leaves its file behind, silent: the next one sees that and takes the next number. No clocks are
    compared. Raises UserError where a live job holds the folder, or took over while this one was silent.
    """
    mine = _take(storage.join(folder, "holders"))
    ended, lost = threading.Event(), threading.Event()
    main = threading.main_thread().ident

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(UserError):  # storage is out for the moment: the next beat may get through
                if not storage.exists(mine):
                    lost.set()
                    # Not SIGINT: `&` in a script leaves that ignored.
                    handled = callable(signal.getsignal(signal.SIGTERM))
                    if main and handled:
                        signal.pthread_kill(main, signal.SIGTERM)  # ends a sleep, too
                    return
                storage.write_text(mine, _signature())

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise UserError(f"{folder}: another job took it over while this one was silent") from None
        raise
    finally:
        ended.set()
        beats.join()  # a beat on its way would write the file again
        with suppress(FileNotFoundError, UserError):
            storage.remove(mine)


def require_free(folder: str) -> None:
    """Raise UserError where a live job holds `folder`."""
    number, last = _last(storage.join(folder, "holders"))
    if number:
        _silent(last)


@contextmanager
def held_first(folder: str) -> Iterator[None]:
    """Where the body finds no room on the cluster, and a live job that holds `folder` takes it: say that instead."""
    try:
        yield
    except UserError:
        require_free(folder)
        raise


def _take(holders: str) -> str:
    """Make the next file in `holders`; first see whether its last one is of a live job."""
    while True:
        number, last = _last(holders)
        if number and not _silent(last):
            continue
        mine = _file(holders, number + 1)
        if storage.create(mine, _signature().encode()):
            if number:
                with suppress(FileNotFoundError):
                    storage.remove(last)
            return mine


def _last(holders: str) -> tuple[int, str]:
    number = 0
    with suppress(FileNotFoundError):
        number = max((int(name.removesuffix(".json")) for name, _ in storage.list_files(holders)), default=0)
    return number, _file(holders, number)


def _file(holders: str, number: int) -> str:
    return storage.join(holders, f"{number:06d}.json")


def _silent(last: str) -> bool:
    """Whether the holder behind a file gives no sign. Raises UserError where it does; False where it left."""
    try:
        seen = storage.read_bytes(last)
        holder = json.loads(seen)
        say("hold", f"{holder['host']}, process {holder['pid']}, held this folder; seeing whether it still lives")
        give_up = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < give_up:
            time.sleep(1)
            if storage.read_bytes(last) != seen:
                raise UserError(
                    f"{last.rpartition('/holders/')[0]} is being worked on by {holder['host']}, "
                    f"process {holder['pid']}: wait for it or use another --out"
                )
    except FileNotFoundError:
        return False
    return True


def _signature() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "beat": uuid.uuid4().hex})
