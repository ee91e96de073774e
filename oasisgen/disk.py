"""Files on disk: atomic writes, and compare-and-replace."""

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

TEMPORARY = ".oasisgen-tmp"  # suffix of local files that are being written
MOUNTS_WITHOUT_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def temporary(target: Path, data: bytes) -> Iterator[Path]:
    """Write `data` to a file beside `target` and fsync it; the file is removed at the end unless it was moved."""
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
        try:  # creating the file is still atomic, but a reader may see it before its content is written
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
    """Hold an exclusive lock (flock) on `folder` while files in it are replaced, if the file system has locks."""
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
            raise TimeoutError(errno.ETIMEDOUT, "another process does not finish its write")
        yield
    finally:
        os.close(handle)


def check(uri: str, path: Path) -> None:
    """Raise UserError unless a file can be created, replaced and removed in the folder (or its nearest parent)."""
    with one_line(uri, "write"):
        home = next(parent for parent in (path, *path.parents) if parent.exists())
        if not home.is_dir():
            raise UserError(f"{uri}: {home} is not a folder; give another --out")
        probe = home / f".check-{uuid.uuid4().hex[:8]}"
        try:
            tag = replace(probe, b"first", None)
            if not tag or replace(probe, b"other", None) or not replace(probe, b"second", tag):
                raise UserError(f"{uri}: {home} cannot create or replace a file atomically; give another --out")
        finally:
            probe.unlink(missing_ok=True)


def left_out(top: str) -> list[str]:
    """Broken links, special files and files whose names are not UTF-8, as paths relative to a folder.

    Raises OSError if a link leads to a folder that it is in.
    """
    found = []
    for folder, folders, names in os.walk(top, followlinks=True):
        for link in (Path(folder, name) for name in folders):
            if link.is_symlink() and any(above.resolve().is_relative_to(link.resolve()) for above in link.parents):
                raise OSError(errno.ELOOP, f"{str(link.relative_to(top))!r} leads to a folder that it is in")
        for each in (Path(folder, name) for name in names):
            path = str(each.relative_to(top))
            if not each.is_file() or path != path.encode(errors="replace").decode():
                found.append(path)
    return sorted(found)
