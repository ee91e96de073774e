"""One job at a time works on a folder.

The lock is `<folder>/lock.json`. Every change of it is conditional: it replaces the very bytes that were read, or it
fails (If-Match on S3, compare and replace on disk). A job that was stopped and wakes up, or whose write was on its way
for a minute, therefore never undoes what another job wrote in between. The file stays when a job is done with it, so a
token that was used once is never valid again.

A job renews its lock every few seconds. A waiting job takes over only after it has read the same bytes 20 times, a
second apart: a read that fails proves nothing and starts the count again. No clocks are compared.

A job renews the lock right before each file that says "complete". It creates that file only if there is none, or
replaces the very one that it found before it renewed, so two jobs never both complete something. What remains: plain
PUTs on S3 know no lock, so a job that is stopped between renewing and writing may still write other files after a
takeover. Slices and shards get the same bytes under the same name, unless source or device changed in between, which
their digests tell. A checkpoint gets a name of its own, and who reads goes by its step and digest; but Ray Train may
then drop older checkpoints of the run, and some epochs are trained again.
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
READS_UNTIL_EXPIRY = 20  # unchanged, one after the other
READS_AT_MOST = 10 * READS_UNTIL_EXPIRY  # of a storage that fails again and again
TRUSTED_SECONDS = READS_UNTIL_EXPIRY * READ_SECONDS / 2  # that renewing may take from request to answer
Commit = Callable[[str, bytes], None]  # Lock.commit or Lock.write: URI and data of a file that counts


class LockLost(UserError):
    """Another job took the folder over while this one gave no sign of life."""


@dataclass(frozen=True)
class Holder:
    """What `lock.json` says."""

    token: str  # of one job's hold; never used again
    generation: int  # one more with every hold
    host: str
    pid: int
    beat: str  # new with every renewal, so that no two contents are equal
    released: bool = False

    def to_json(self) -> bytes:
        """The bytes of `lock.json`."""
        return (json.dumps(asdict(self)) + "\n").encode()


@dataclass(frozen=True)
class LockProof:
    """What a worker on another node needs to see whether its job still holds the lock."""

    uri: str
    token: str

    def require(self) -> None:
        """Raise LockLost if another job holds the folder by now."""
        holder, _ = _read(self.uri)
        if not holder or holder.released or holder.token != self.token:
            raise LockLost(f"{_folder(self.uri)}: another job took it over while this one was silent")


class Lock:
    """A folder that this process holds. `lock` makes one."""

    def __init__(self, uri: str, holder: Holder, tag: str) -> None:
        self.uri, self.holder, self.tag = uri, holder, tag
        self._mutex = threading.Lock()

    @property
    def proof(self) -> LockProof:
        """For workers on other nodes."""
        return LockProof(self.uri, self.holder.token)

    def renew(self) -> None:
        """Prove to others, and to ourselves, that this job still holds the folder.

        Call it right before a write that counts. Raises LockLost if another job holds the folder by now, StorageError
        if storage cannot tell.
        """
        while True:
            started = _now()
            self._write(replace(self.holder, beat=uuid.uuid4().hex))
            if _now() - started < TRUSTED_SECONDS:  # a slower answer may be older than a takeover
                return

    def commit(self, uri: str, data: bytes) -> None:
        """Write a file that says "complete", once and for all. Raises as `renew`, and LockLost if another job did."""
        self.renew()
        if not storage.create(uri, data) and storage.read_bytes(uri) != data:
            raise LockLost(f"{uri} was written by another job, with other content: use another --out")

    def write(self, uri: str, data: bytes) -> None:
        """Write a file that counts and that an earlier attempt may have left.

        Raises as `renew`, and LockLost if another job wrote it since this call began.
        """
        tag = storage.tag_of(uri)
        self.renew()
        if storage.replace(uri, data, tag) is None:
            raise LockLost(f"{uri} was written by another job in this moment: run the command again")

    def release(self) -> None:
        """Let the next job have the folder at once."""
        with suppress(UserError):  # lost, or storage is out: then it expires
            self._write(replace(self.holder, beat=uuid.uuid4().hex, released=True))

    def _write(self, holder: Holder) -> None:
        with self._mutex:
            while (tag := storage.replace(self.uri, holder.to_json(), self.tag)) is None:
                seen, seen_tag = _read(self.uri)
                if not seen or seen.released or seen.token != self.holder.token:
                    raise LockLost(f"{_folder(self.uri)}: another job took it over while this one was silent")
                self.tag = seen_tag  # an earlier write of ours arrived after we had given it up
            self.holder, self.tag = holder, tag


@contextmanager
def lock(folder: str) -> Iterator[Lock]:
    """Hold `folder` while the body runs.

    Raises UserError if a live job holds it. If another job takes it over, the body is interrupted and LockLost raised.
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
                # Not SIGINT, which a shell's `&` makes processes ignore.
                if main and callable(signal.getsignal(signal.SIGTERM)):
                    signal.pthread_kill(main, signal.SIGTERM)  # ends a sleep, too
                return
            except UserError:  # storage is out for the moment: the next beat may get through
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
    """If the body finds no room on the cluster because a live job works on `folder`, say that instead."""
    try:
        yield
    except UserError:
        require_unlocked(folder)
        raise


def _expired(uri: str, holder: Holder, tag: str) -> bool:
    """Watch a lock: True if its holder gives no sign of life, False if it let go.

    Raises UserError if the holder lives, StorageError if storage does not answer for long.
    """
    say("lock", f"{holder.host}, process {holder.pid}, held {_folder(uri)}; seeing whether it is still alive")
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
    raise UserError(f"{uri}: storage answers too rarely to tell whether another job works here: try again later")


def _read(uri: str) -> tuple[Holder | None, str]:
    """The holder and the tag of the bytes that name it; None and "" if nobody ever held the folder."""
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
    """Seconds that go on while the machine is suspended, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
