"""Read, write and list files by URI, on disk and on S3. No other module depends on where files are.

A URI is a plain path, `file:///…` or `s3://bucket/…` (see `address`). A file is written completely or not at all. Bulk
data goes through pyarrow; `disk` and `s3` hold what is specific to each.

Errors of storage are raised as StorageError, in one line that names the URI and the fix; a missing file raises
FileNotFoundError.
"""

import hashlib
import json
import mimetypes
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import botocore.exceptions
import pyarrow as pa
from pyarrow import fs

from oasisgen import disk, s3
from oasisgen.address import parse
from oasisgen.advice import one_line
from oasisgen.errors import InvalidFile, UserError


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of `uri` and the path in it. Raises UserError if `uri` is not a valid address."""
    address = parse(uri)
    return (s3.file_system(address.bucket) if address.bucket else fs.LocalFileSystem()), address.path


def absolute(uri: str) -> str:
    """`uri` as an absolute path or s3:// address, valid in any process, without a trailing slash."""
    return str(parse(uri))


def real(uri: str) -> str:
    """`uri` with symbolic links resolved: two URIs of one place give the same name."""
    system, path = resolve(uri)
    return os.path.realpath(path) if isinstance(system, fs.LocalFileSystem) else f"{system.type_name}:{path}"


def join(uri: str, *names: str) -> str:
    """`uri`/`names`."""
    return posixpath.join(uri, *names)


def exists(uri: str) -> bool:
    """Whether there is a file or folder at `uri`."""
    with one_line(uri, "read"):
        system, path = resolve(uri)
        return system.get_file_info(path).type != fs.FileType.NotFound


class Listed(NamedTuple):
    """A file in a listing of a folder."""

    name: str  # path relative to the folder
    size: int  # bytes
    modified: int  # nanoseconds since 1970


def list_files(uri: str) -> Iterator[tuple[str, int]]:
    """(path below `uri`, bytes) of every file under a folder, sorted by name.

    Raises FileNotFoundError if there is no such folder.
    """
    yield from (file[:2] for file in list_details(uri))


def list_details(uri: str) -> list[Listed]:
    """Every file under a folder, sorted by name. Raises as `list_files`."""
    with one_line(uri, "list"):
        system, path = resolve(uri)
        infos = _named(system.get_file_info(fs.FileSelector(path, recursive=True)))
    return [
        Listed(info.path[len(path) :].lstrip("/"), info.size, info.mtime_ns or 0)
        for info in sorted((info for info in infos if info.type == fs.FileType.File), key=lambda info: info.path)
        if not info.base_name.endswith(disk.TEMPORARY)  # skip files that are still being written
    ]


def details(uri: str) -> Listed | None:
    """The size and time of one file; None if there is no file at `uri`."""
    with one_line(uri, "read"):
        system, path = resolve(uri)
        info = system.get_file_info(path)
    return Listed(info.base_name, info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else None


def _named(infos: Iterable[fs.FileInfo]) -> list[fs.FileInfo]:
    """Those whose names are UTF-8: pyarrow cannot tell or read others, and oasisgen writes none."""
    named = []
    for info in infos:
        with suppress(UnicodeDecodeError):
            named += [info] if info.path else []
    return named


def list_left_out(uri: str) -> list[str]:
    """What the other listings leave out under a folder: broken links, special files, and names that are not UTF-8,
    whose bytes are surrogates here.

    Raises StorageError if a link leads to a folder that it is in: listing would follow it over and over.
    """
    with one_line(uri, "list"):
        system, path = resolve(uri)
        return disk.left_out(path) if isinstance(system, fs.LocalFileSystem) else []


def list_folders(uri: str) -> list[str]:
    """Sorted names of the folders directly in a folder; empty if there is no such folder."""
    return sorted(info.base_name for info in _directly_in(uri) if info.type == fs.FileType.Directory)


def list_names(uri: str) -> list[str]:
    """Sorted names of the files and folders directly in a folder; empty if there is no such folder."""
    return sorted(info.base_name for info in _directly_in(uri))


def _directly_in(uri: str) -> list[fs.FileInfo]:
    with suppress(FileNotFoundError), one_line(uri, "list"):
        system, path = resolve(uri)
        return _named(system.get_file_info(fs.FileSelector(path, allow_not_found=True)))
    return []


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """The whole file, or its first `most` bytes. Raises FileNotFoundError."""
    with one_line(uri, "read"):
        system, path = resolve(uri)
        with system.open_input_stream(path, compression=None) as stream:
            return stream.read(most)


def open_random(uri: str) -> pa.NativeFile:
    """The file, opened to be read from any place. Raises FileNotFoundError."""
    with one_line(uri, "open"):
        system, path = resolve(uri)
        return system.open_input_file(path)


def read_json(uri: str) -> Any:
    """The JSON file at `uri`. Raises FileNotFoundError, and InvalidFile if it is not JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(read_bytes(uri))
    try:
        return json.loads(read_bytes(uri))  # it may have been replaced during the first read
    except (ValueError, RecursionError):
        raise InvalidFile(f"{uri} is not valid JSON: it is damaged; remove it and run the command again") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically: a reader sees the old file, the new one, or none."""
    with one_line(uri, "write"):
        system, path = resolve(uri)
        if isinstance(system, fs.LocalFileSystem):
            with disk.temporary(Path(path), data) as temporary:
                temporary.replace(path)
        else:  # object stores show an object only once it is complete
            with system.open_output_stream(path, compression=None) as stream:
                stream.write(data)


def write_text(uri: str, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(uri, text.encode())


def create(uri: str, data: bytes) -> bool:
    """Write the file unless it exists. Of concurrent callers, exactly one gets True, also on S3."""
    return replace(uri, data, None) is not None


def read_tagged(uri: str) -> tuple[bytes, str]:
    """The bytes of a file and their tag, for `replace`. Raises FileNotFoundError."""
    if not is_s3(uri):
        data = read_bytes(uri)
        return data, hashlib.sha256(data).hexdigest()
    with one_line(uri, "read"):
        address = parse(uri)
        try:
            answer = s3.client().get_object(Bucket=address.bucket, Key=address.key)
            return answer["Body"].read(), answer["ETag"]
        except botocore.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(uri) from None
            raise


def replace(uri: str, data: bytes, tag: str | None) -> str | None:
    """Write the file if its tag is still `tag` (None: if there is no file); returns the new tag.

    Returns None, and writes nothing, if the file has changed. Of concurrent callers with the same tag, exactly one
    succeeds, also on S3. `data` must differ from everything that was written there before.
    """
    with one_line(uri, "write"):
        if not is_s3(uri):
            return disk.replace(Path(resolve(uri)[1]), data, tag)
        address = parse(uri)
        # Ceph and others accept only tags without quotation marks.
        conditions = [{"IfMatch": tag}, {"IfMatch": tag.strip('"')}] if tag else [{"IfNoneMatch": "*"}]
        for _ in range(s3.ATTEMPTS):
            try:
                where = {"Bucket": address.bucket, "Key": address.key}
                return str(s3.client().put_object(**where, Body=data, **conditions[0])["ETag"])
            except botocore.exceptions.ClientError as error:
                code = error.response["Error"]["Code"]
                if code not in (*s3.NOT_MET, "ConditionalRequestConflict", "NoSuchKey"):
                    raise
            there, its_tag = _read_tagged_if_any(uri)
            if there == data:  # an earlier attempt wrote it, but its response was lost
                return its_tag
            if code == "ConditionalRequestConflict":  # a concurrent write: try again
                continue
            if its_tag != tag or len(conditions) == 1:
                return None
            conditions.pop(0)
        return None


def tag_of(uri: str) -> str | None:
    """The tag of the file at `uri`, for `replace`; None if there is none."""
    return _read_tagged_if_any(uri)[1]


def _read_tagged_if_any(uri: str) -> tuple[bytes | None, str | None]:
    try:
        return read_tagged(uri)
    except FileNotFoundError:
        return None, None


def remove(uri: str) -> None:
    """Remove one file. Raises FileNotFoundError if the file system reports a missing file."""
    with one_line(uri, "delete"):
        system, path = resolve(uri)
        system.delete_file(path)


def link(uri: str, hours: float) -> str:
    """A presigned URL of a file on S3, valid for `hours` without credentials. Raises UserError for other storage."""
    if not is_s3(uri):
        raise UserError(f"{uri} is not on S3: only files on S3 can be shared by a link")
    address = parse(uri)
    with one_line(uri, "share"):
        kind = mimetypes.guess_type(address.key)[0] or "application/octet-stream"  # else a browser downloads it
        parameters = {"Bucket": address.bucket, "Key": address.key, "ResponseContentType": kind}
        return s3.client().generate_presigned_url("get_object", parameters, ExpiresIn=round(hours * 3600))


def check(uri: str, write: bool) -> None:
    """Raise UserError unless storage answers and this process may list (with `write`: also write, read and delete).

    `uri` is a folder and need not exist. The file that is written for the check is removed again.
    """
    address = parse(uri)
    if address.bucket:
        s3.check(uri, address, write)
    elif write:
        disk.check(uri, Path(address.path))


def is_s3(uri: str) -> bool:
    """Whether `uri` is on S3 or an S3-compatible server."""
    return uri.startswith("s3://")
