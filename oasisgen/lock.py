"""Lock a folder, so that only one job at a time works on it.

The lock is `<folder>/lock.json`. Every write to it is conditional (If-Match on S3, compare and replace on disk): it
replaces exactly the bytes that were read, or it fails. A job that resumes after a suspension, or whose write was
delayed for a minute, therefore never overwrites what another job wrote in between. The file stays when a job ends, so
a token is never valid twice.

A job renews its lock every few seconds. A waiting job takes over only after it has read the same bytes 20 times, one
second apart. A failed read proves nothing and restarts the count. No clocks are compared.

A job renews the lock right before it writes a file that marks work as complete. It creates that file only if there is
none, or replaces exactly the file that it found before it renewed, so two jobs never complete the same work. One gap
remains: plain PUTs on S3 do not check the lock, so a job that is suspended between renewing and writing may still write
other files after a takeover. Slices and shards get the same bytes under the same name, unless the source or the device
changed in between, which their digests show. Each checkpoint has its own name, and readers choose one by step and
digest. But Ray Train may then delete older checkpoints of the run, and some epochs are trained again.
"""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace

from oasisgen import storage
from oasisgen.errors import InvalidFile, StorageError, UserError
from oasisgen.progress import say

LOCK = "lock.json"
BEAT_SECONDS = 4.0
READ_SECONDS = 1.0
READS_UNTIL_EXPIRY = 20  # consecutive reads of the same bytes
READS_AT_MOST = 10 * READS_UNTIL_EXPIRY  # if reads keep failing
TRUSTED_SECONDS = READS_UNTIL_EXPIRY * READ_SECONDS / 2  # longest request for a renewal that is still trusted
Commit = Callable[[str, bytes], None]  # Lock.commit or Lock.write, called with URI and data


class LockLost(UserError):
    """Another job took over the folder because this one did not renew its lock in time."""


@dataclass(frozen=True)
class Holder:
    """The content of `lock.json`: the job that holds the lock."""

    token: str  # unique to one acquisition
    generation: int  # incremented by every acquisition
    host: str
    pid: int
    beat: str  # new at every renewal, so that the file's bytes always change
    released: bool = False

    def to_json(self) -> bytes:
        """The bytes of `lock.json`."""
        return (json.dumps(asdict(self)) + "\n").encode()


@dataclass(frozen=True)
class LockProof:
    """What a worker on another node needs to check that its job still holds the lock."""

    uri: str
    token: str

    def require(self) -> None:
        """Raise LockLost if another job has taken the lock."""
        holder, _ = _read(self.uri)
        if not holder or holder.released or holder.token != self.token:
            raise LockLost(f"{_folder(self.uri)}: another job took it over while this one was silent")


class Lock:
    """The lock of a folder, held by this process. Created by `lock`."""

    def __init__(self, uri: str, holder: Holder, tag: str) -> None:
        self.uri, self.holder, self.tag = uri, holder, tag
        self._mutex = threading.Lock()

    @property
    def proof(self) -> LockProof:
        """For workers on other nodes."""
        return LockProof(self.uri, self.holder.token)

    def renew(self) -> None:
        """Renew the lock, and so prove that this job still holds it.

        Call it right before a write that must not happen without the lock. Raises LockLost if another job has taken the
        lock, StorageError if storage fails.
        """
        while True:
            started = _now()
            self._write(replace(self.holder, beat=uuid.uuid4().hex))
            if _now() - started < TRUSTED_SECONDS:  # a takeover may have followed a slower write
                return

    def commit(self, uri: str, data: bytes) -> None:
        """Write a file that marks work as complete. Raises as `renew`, and LockLost if another job wrote it already."""
        self.renew()
        if not storage.create(uri, data) and storage.read_bytes(uri) != data:
            raise LockLost(f"{uri} was written by another job, with other content: use another --out")

    def write(self, uri: str, data: bytes) -> None:
        """Write a file under the lock; an earlier attempt may have left one.

        Raises as `renew`, and LockLost if another job wrote it since this call began.
        """
        tag = storage.tag_of(uri)
        self.renew()
        if storage.replace(uri, data, tag) is None:
            raise LockLost(f"{uri} was written by another job at the same time: run the command again")

    def release(self) -> None:
        """Release the lock, so that the next job need not wait until it expires."""
        with suppress(UserError):  # the lock is lost, or storage is down and the lock will expire
            self._write(replace(self.holder, beat=uuid.uuid4().hex, released=True))

    def _write(self, holder: Holder) -> None:
        with self._mutex:
            while (tag := storage.replace(self.uri, holder.to_json(), self.tag)) is None:
                seen, seen_tag = _read(self.uri)
                if not seen or seen.released or seen.token != self.holder.token:
                    raise LockLost(f"{_folder(self.uri)}: another job took it over while this one was silent")
                self.tag = seen_tag  # an earlier write of ours succeeded after we had given up on it
            self.holder, self.tag = holder, tag


@contextmanager
def lock(folder: str) -> Iterator[Lock]:
    """Hold the lock of `folder` while the body runs.

    Raises UserError if a live job holds it. If another job takes it over, interrupts the body and raises LockLost.
    """
    held = acquire(folder)
    ended, lost = threading.Event(), threading.Event()
    main = threading.main_thread().ident

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                held.renew()
            except LockLost:
                lost.set()
                # Not SIGINT: a shell starts background processes (`&`) with SIGINT ignored.
                if main and callable(signal.getsignal(signal.SIGTERM)):
                    signal.pthread_kill(main, signal.SIGTERM)  # also interrupts a sleep
                return
            except UserError:  # storage is down: the next renewal may succeed
                continue

    beats = threading.Thread(target=beat, daemon=True)
    beats.start()
    try:
        yield held
    except KeyboardInterrupt:
        if lost.is_set():
            raise LockLost(f"{folder}: another job took it over while this one was silent") from None
        raise
    finally:
        ended.set()
        beats.join()
        held.release()


def acquire(folder: str) -> Lock:
    """Take the lock of `folder`. Raises UserError if a live job holds it."""
    uri = storage.join(folder, LOCK)
    while True:
        holder, tag = _read(uri)
        if holder and not holder.released and not _expired(uri, holder, tag):
            continue
        generation = holder.generation + 1 if holder else 1
        mine = Holder(uuid.uuid4().hex, generation, socket.gethostname(), os.getpid(), uuid.uuid4().hex)
        if mine_tag := storage.replace(uri, mine.to_json(), tag or None):
            return Lock(uri, mine, mine_tag)


def require_unlocked(folder: str) -> None:
    """Raise UserError if a live job holds `folder`."""
    uri = storage.join(folder, LOCK)
    holder, tag = _read(uri)
    if holder and not holder.released:
        _expired(uri, holder, tag)


@contextmanager
def unless_locked(folder: str) -> Iterator[None]:
    """If the body raises UserError while a live job holds `folder`, report the lock instead: that job uses the CPUs."""
    try:
        yield
    except UserError:
        require_unlocked(folder)
        raise


def _expired(uri: str, holder: Holder, tag: str) -> bool:
    """Watch a lock: True if its holder no longer renews it, False if it was released.

    Raises UserError if the holder renews it, StorageError if storage keeps failing.
    """
    say("lock", f"{holder.host}, process {holder.pid}, holds {_folder(uri)}; checking whether it is still alive")
    unchanged = 0
    for reads in range(READS_AT_MOST):
        _sleep(READ_SECONDS)
        try:
            latest, latest_tag = _read(uri)
        except StorageError:  # the holder may be unable to renew for the same reason
            if reads == READS_AT_MOST - 1:
                raise
            unchanged = 0
            continue
        if not latest or latest.released:
            return False
        if latest_tag != tag:
            raise UserError(
                f"{_folder(uri)} is being worked on by {latest.host}, process {latest.pid}: "
                "wait for it or use another --out"
            )
        unchanged += 1
        if unchanged == READS_UNTIL_EXPIRY:
            return True
    raise UserError(f"{uri}: storage fails too often to tell whether another job works on this folder: try again later")


def _read(uri: str) -> tuple[Holder | None, str]:
    """The holder in a lock file, and the file's tag; None and "" if there is no lock file yet."""
    try:
        data, tag = storage.read_tagged(uri)
    except FileNotFoundError:
        return None, ""
    try:
        content = json.loads(data)
        holder = Holder(**content)
        if not all(isinstance(getattr(holder, field.name), field.type) for field in fields(Holder)):  # type: ignore[arg-type]
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise InvalidFile(f"{uri} is damaged: remove it if no job works on {_folder(uri)}") from None
    return holder, tag


def _folder(uri: str) -> str:
    return uri.rpartition("/")[0]


def _now() -> float:
    """Seconds of a monotonic clock that includes suspension of the machine, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
