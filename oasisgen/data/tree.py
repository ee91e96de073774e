"""The files of a source: list and read them, in folders and in archives, on disk and on S3."""

import posixpath
import re
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from oasisgen import storage
from oasisgen.data.archives import ARCHIVE, archive_format, list_members, read_member
from oasisgen.data.cases import SourceFile, UnusedFile
from oasisgen.data.description import RejectedFile
from oasisgen.data.names import printable
from oasisgen.errors import StorageError, UserError

ODD_NAME = "its name has characters that cannot be printed, or is not UTF-8: rename it"
PAUSE_SECONDS = 5  # before the last attempt to read a file, after the client's own retries have failed
# What operating systems leave behind in folders and archives: nobody put it there, so it is not even mentioned.
LEFTOVER = re.compile(
    r"(\._.*|\.DS_Store|\.localized|__MACOSX|\.AppleDouble|\.Trashes|\.Spotlight-V100|\.fseventsd|Thumbs\.db"
    r"|ehthumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|\.directory|\.Trash-\d+|.*_\$folder\$)",
    re.IGNORECASE,
)


class Tree(NamedTuple):
    """The files of a source, those in archives too. Paths are below the source's URI."""

    files: list[SourceFile]  # by path
    rejected: list[RejectedFile]  # links that lead nowhere, and odd names
    unused: list[UnusedFile]  # what is never read: links in archives, archives in archives, …


def list_tree(source: str) -> Tree:
    """List a folder and the archives in it, or one archive.

    Raises UserError if there is neither, StorageError if links form a loop, and InvalidFile if an archive is damaged,
    encrypted or empty.
    """
    tree = Tree([], [], [])
    for path in storage.list_left_out(source):
        if not _is_leftover(path):
            tree.rejected.append(RejectedFile(printable(path), "leads nowhere" if path.isprintable() else ODD_NAME))
    for file in _listed(source):
        if _is_leftover(file.path):
            continue
        if not file.path.isprintable():
            tree.rejected.append(RejectedFile(printable(file.path), ODD_NAME))
            continue
        if not ARCHIVE.fullmatch(posixpath.basename(file.path) or posixpath.basename(source)):
            tree.files.append(file)
        elif archive_format(file.path or source) is None:
            tree.unused.append(UnusedFile(file.path, "an archive other than .tar, .tar.gz and .zip: unpack it"))
        else:
            members, unused = list_members(source, file)
            tree.files.extend(member for member in members if not _is_leftover(member.path))
            tree.unused.extend(member for member in unused if not _is_leftover(member.path))
    tree.files.sort(key=lambda file: file.path)
    return tree


def _listed(source: str) -> Iterable[SourceFile]:
    """The files of a folder without the zero-byte markers that stand for folders on S3; of an archive, itself."""
    try:
        files = [SourceFile(*file) for file in storage.list_details(source)]
    except FileNotFoundError:
        alone = storage.details(source) if archive_format(source) else None
        if alone is None:
            raise UserError(
                f"no folder at {source}: give --source the folder that holds train, validate and test, or an archive "
                "of it (.tar, .tar.gz, .zip)"
            ) from None
        return [SourceFile("", alone.size, alone.modified)]
    if not files and archive_format(source) and (alone := storage.details(source)):  # on S3, nothing lies below a file
        return [SourceFile("", alone.size, alone.modified)]
    folders = {folder for file in files for folder in _parents(file.path)}
    return [file for file in files if file.size or file.path not in folders]


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _is_leftover(path: str) -> bool:
    return any(LEFTOVER.fullmatch(name) for name in path.split("/"))


def read_file(source: str, file: SourceFile, most: int | None = None) -> bytes:
    """The bytes of a file, or its first `most` bytes, with one retry after a pause in case storage is down.

    Raises StorageError. Ray's `retry_exceptions` is no alternative: Ray Data rejects it since 2.64, and Ray retries
    without a pause.
    """
    uri = storage.join(source, file.path)
    try:
        try:
            return _read(source, file, most)
        except StorageError:
            time.sleep(PAUSE_SECONDS)
            return _read(source, file, most)
    except FileNotFoundError:
        raise StorageError(f"{uri} was removed while it was being packed: pack again") from None


def _read(source: str, file: SourceFile, most: int | None) -> bytes:
    if file.member:
        return read_member(source, file, most)
    return storage.read_bytes(storage.join(source, file.path), most)
