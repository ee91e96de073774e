"""Files on disk: written whole or not at all, and replaced only by who knows what they hold."""

import errno
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oasisgen.advice import one_line
from oasisgen.errors import UserError

TEMPORARY = ".oasisgen-tmp"  # ends the names of local files that are being written
MOUNTS_WITHOUT_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def temporary(target: Path, data: bytes) -> Iterator[Path]:
    """`data` in a file beside `target`, safe on the disk; removed at the end unless it was moved."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def replace(path: Path, data: bytes, tag: str | None) -> str | None:
    """As `storage.replace`, on disk; the tag is the sha256 of the file."""
    with temporary(path, data) as written:
        if tag is None:
            if not _move_if_free(written, path, data):
                return None
        else:
            with _alone_in(path.parent):
                if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != tag:
                    return None
                written.replace(path)
    return hashlib.sha256(data).hexdigest()


def _move_if_free(temporary: Path, path: Path, data: bytes) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in MOUNTS_WITHOUT_LINKS:
            raise
        try:  # the name is taken in one step all the same; a reader may see it before its content
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    return True


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that replace files in `folder` out, where the file system knows locks (flock)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(100):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # not on this file system
                break
        else:
            raise TimeoutError(errno.ETIMEDOUT, "another process does not end its write")
        yield
    finally:
        os.close(handle)


def check(uri: str, path: Path) -> None:
    """Do in the folder, or in the nearest one above it that exists, what a job does: create, replace, remove."""
    with one_line(uri, "write"):
        home = next(parent for parent in (path, *path.parents) if parent.exists())
        if not home.is_dir():
            raise UserError(f"{uri}: {home} is no folder; give another --out")
        probe = home / f".check-{uuid.uuid4().hex[:8]}"
        try:
            tag = replace(probe, b"first", None)
            if not tag or replace(probe, b"other", None) or not replace(probe, b"second", tag):
                raise UserError(f"{uri}: {home} does not keep one file from being created twice; give another --out")
        finally:
            probe.unlink(missing_ok=True)
