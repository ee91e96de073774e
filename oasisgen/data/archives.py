"""Archives in a source: list their members and read single ones in place. Nothing is unpacked, nothing is trusted.

Members of a .tar (stored) and of a .zip (compressed one by one) are read by byte range. A .tar.gz is one compressed
stream: one pass lists its members, and an index with a point every few megabytes lets reading start in the middle.
"""

import functools
import gzip
import io
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal

import pyarrow as pa
from indexed_gzip.indexed_gzip import CrcError, IndexedGzipFile, ZranError

from oasisgen import storage
from oasisgen.advice import one_line
from oasisgen.data.cases import Member, SourceFile, UnusedFile
from oasisgen.data.names import printable
from oasisgen.errors import InvalidFile, StorageError

ARCHIVE = re.compile(r".*\.(tar|tgz|zip|7z|rar|(tar\.|t)(gz|bz2?|xz|zst|lzma|Z))", re.IGNORECASE | re.DOTALL)
FORMATS: dict[str, Literal["tar", "gzip", "zip"]] = {".tar": "tar", ".tar.gz": "gzip", ".tgz": "gzip", ".zip": "zip"}
BUFFER_BYTES = 1 << 18  # read at a time while a .tar is listed
INDEX_BYTES = 1 << 20  # of a .tar.gz between two places where reading can start, each of which takes 32 KB of memory
MOST_POINTS = 512  # such places in an archive that does not shrink; one that does has more
MOST_EXPANSION = 200  # a .tar.gz that grows more than this is no archive of scans; gzip can reach 1,000
MOST_HEADER_BYTES = 1 << 20  # of one member's names and attributes
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a .zip: signature, length of its name, of extra fields
METHODS: dict[int, Literal["stored", "deflated"]] = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
ENCRYPTED = 0x1  # flag of a member of a .zip
SYMLINK = 0o120000
ODD = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8
DAMAGE = (  # what the libraries raise when they meet it
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    ZranError,
    CrcError,
    EOFError,
    ValueError,
    NotImplementedError,
    OverflowError,
    struct.error,
)
Members = tuple[list[SourceFile], list[UnusedFile]]


def archive_format(name: str) -> Literal["tar", "gzip", "zip"] | None:
    """The format of an archive that can be read, by its name."""
    return next((kind for end, kind in FORMATS.items() if name.lower().endswith(end)), None)


def list_members(source: str, archive: SourceFile) -> Members:
    """The files in an archive, and what is never read there: links, devices, paths that lead outside, archives.

    Raises InvalidFile if the archive is damaged, encrypted or empty.
    """
    uri = storage.join(source, archive.path).rstrip("/")
    kind = archive_format(uri)
    with _damage(uri):
        if not archive.size:
            raise InvalidFile(f"{uri} is empty, 0 bytes: copy it again")
        members = list(_zip_members(uri, archive) if kind == "zip" else _tar_members(uri, archive, kind == "gzip"))
    if not members:
        raise InvalidFile(f"{uri} holds no files: remove it, or copy it again")
    return (
        [each for each in members if isinstance(each, SourceFile)],
        [each for each in members if isinstance(each, UnusedFile)],
    )


@contextmanager
def _damage(uri: str) -> Iterator[None]:
    """Raise the errors of damaged archives as InvalidFile, and those of storage as StorageError."""
    try:
        with one_line(uri, "read"):
            try:
                yield
            except DAMAGE as error:
                reason = " ".join(str(error).split()) or "it ends too early"
                raise InvalidFile(f"{uri} is truncated or damaged ({reason}): copy it again") from None
    except FileNotFoundError:
        raise StorageError(f"{uri} was removed while it was being packed: pack again") from None


def _refusal(path: str, name: str) -> UnusedFile | None:
    """Why a member is not read because of its name."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or ".." in name.split("/"):
        return UnusedFile(path, "in an archive, under a path that leads outside")
    if not name.strip("./"):
        return UnusedFile(path, "in an archive, without a name")
    if ODD.search(name):
        return UnusedFile(path, "in an archive, under a name that is not UTF-8, or with control characters")
    if ARCHIVE.fullmatch(name):
        return UnusedFile(path, "an archive in an archive: unpack the outer one")
    return None


def _path(archive: SourceFile, name: str) -> str:
    clean = "/".join(part for part in name.split("/") if part not in ("", "."))
    clean = printable(clean) if ODD.search(clean) else clean
    return posixpath.join(archive.path, clean) if clean else archive.path


def _tar_members(uri: str, archive: SourceFile, compressed: bool) -> Iterator[SourceFile | UnusedFile]:
    stream: BinaryIO = io.BufferedReader(storage.open_random(uri), BUFFER_BYTES)
    stream = gzip.GzipFile(fileobj=stream) if compressed else stream  # type: ignore[assignment]
    tape = _Tape(stream, archive.size * (MOST_EXPANSION if compressed else 1))
    with tarfile.open(fileobj=tape, mode="r:", errorlevel=2) as tar:
        while info := tar.next():
            tar.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
            path = _path(archive, info.name)
            if info.isdir():
                continue
            if not info.isreg() or info.sparse is not None:
                yield UnusedFile(path, "in an archive, a link, a device or a sparse file")
            else:
                where = Member(archive.path, "gzip" if compressed else "stored", info.offset_data, info.size)
                yield _refusal(path, info.name) or SourceFile(path, info.size, archive.modified, where)
        tape.seek(tar.offset)
        if tape.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError  # every tar ends with blocks of zeros
        while compressed and tape.read(MOST_HEADER_BYTES):  # to its end, where gzip's checksum is
            pass


class _Tape(io.RawIOBase):
    """A file as tarfile reads it while it lists members: headers only, so that no header can fill the memory."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most = file, most

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > self.most:
            raise EOFError(f"a file in it would end at byte {offset}")
        return self.file.seek(offset)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER_BYTES or self.tell() > self.most:
            raise EOFError(f"a header of {size} bytes at byte {self.tell()}")
        return self.file.read(size)


def _zip_members(uri: str, archive: SourceFile) -> Iterator[SourceFile | UnusedFile]:
    with zipfile.ZipFile(io.BufferedReader(storage.open_random(uri), BUFFER_BYTES)) as opened:
        for info in opened.infolist():
            path = _path(archive, info.filename)
            if info.filename.endswith("/"):
                continue
            if info.flag_bits & ENCRYPTED:
                raise InvalidFile(f"{uri} is encrypted: unpack it, and give --source the folder")
            if info.external_attr >> 16 & 0o170000 == SYMLINK:
                yield UnusedFile(path, "in an archive, a link, a device or a sparse file")
            elif (method := METHODS.get(info.compress_type)) is None:
                yield UnusedFile(path, "in an archive, compressed in a rare way: unpack it")
            else:
                if info.header_offset + info.compress_size > archive.size:
                    raise EOFError
                where = Member(archive.path, method, info.header_offset, info.compress_size, info.CRC)
                yield _refusal(path, info.filename) or SourceFile(path, info.file_size, archive.modified, where)


def read_member(source: str, file: SourceFile, most: int | None = None) -> bytes:
    """The bytes of a file in an archive, or its first `most` bytes. Raises InvalidFile if they are damaged."""
    member = file.member
    assert member
    size = file.size if most is None else min(most, file.size)
    uri = storage.join(source, member.archive).rstrip("/")
    with _damage(uri):
        if member.method == "gzip":
            data = _open_gzip(uri, file.modified).pread(size, member.start)
        elif member.crc is None:
            data = _open_file(uri, file.modified).read_at(size, member.start)
        else:
            data = _read_from_zip(_open_file(uri, file.modified), file, member)[:size]
        if len(data) != size or (size == file.size and member.crc is not None and zlib.crc32(data) != member.crc):
            raise EOFError(f"{file.path} is not whole")
    return data


def _read_from_zip(opened: pa.NativeFile, file: SourceFile, member: Member) -> bytes:
    """A member of a .zip, at most `file.size` bytes of it."""
    slack = 1024 + len(file.path)  # for the header, which alone gives its length
    data = opened.read_at(slack + member.stored, member.start)
    signature, name, extra = LOCAL_HEADER.unpack_from(data)
    if signature != b"PK\3\4":
        raise ValueError(f"no header of {file.path}")
    start = LOCAL_HEADER.size + name + extra
    if start > slack:
        data = opened.read_at(start + member.stored, member.start)
    packed = data[start : start + member.stored]
    return packed if member.method == "stored" else zlib.decompressobj(-15).decompress(packed, file.size + 1)


@functools.lru_cache(maxsize=32)  # one per process, archive and its time
def _open_file(uri: str, modified: int) -> pa.NativeFile:
    return storage.open_random(uri)


@functools.lru_cache(maxsize=32)
def _open_gzip(uri: str, modified: int) -> IndexedGzipFile:
    """Its index grows as it is read: a process never decompresses a part of an archive twice just to find a member."""
    file = storage.open_random(uri)
    spacing = max(INDEX_BYTES, file.size() // MOST_POINTS)
    return IndexedGzipFile(fileobj=file, spacing=spacing, readbuf_size=BUFFER_BYTES)
