"""URI -> file system, and the few verbs the project needs. The only module that knows where files live.

A URI is a plain path, `file:///…`, or any scheme that `pyarrow.fs` opens. A file is written whole or not at all.
"""

import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from oasisgen.errors import UserError


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of `uri` and the path in it. Plain paths become absolute.

    Raises UserError for a scheme that is not known.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(Path(uri).expanduser())
    try:
        return fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri}: not a URI this program can open ({error}); give a path, file:///… or s3://…") from None


def absolute(uri: str) -> str:
    """`uri` as any process on any node would name it, without a trailing slash."""
    return (uri if "://" in uri else resolve(uri)[1]).rstrip("/")


def join(uri: str, *names: str) -> str:
    """`uri`/`names`."""
    return posixpath.join(uri, *names)


def exists(uri: str) -> bool:
    """Whether a file or folder lies at `uri`."""
    system, path = resolve(uri)
    return system.get_file_info(path).type != fs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    system, path = resolve(uri)
    with system.open_input_stream(path) as stream:
        return stream.read()


def read_json(uri: str) -> Any:
    """The JSON file at `uri`. Raises FileNotFoundError, and UserError where it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError:
        raise UserError(f"{uri} is not valid JSON: it is damaged; remove it and run the command again") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole file or nothing: a reader sees the old file, the new one, or none."""
    system, path = resolve(uri)
    if not isinstance(system, fs.LocalFileSystem):  # object stores show an object only once it is complete
        with system.open_output_stream(path) as stream:
            stream.write(data)
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{uri} cannot be written: {error.strerror}; free space or give another --out") from None


def remove(uri: str) -> None:
    """Remove one file."""
    system, path = resolve(uri)
    system.delete_file(path)


def write_text(uri: str, text: str) -> None:
    """UTF-8, whole or not at all."""
    write_bytes(uri, text.encode())


def write_table(uri: str, table: pa.Table, rows_per_group: int) -> bytes:
    """One Parquet file, whole or not at all; returns its bytes, for a digest."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows_per_group, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_bytes(uri, data)
    return data


def read_table(uri: str) -> pa.Table:
    """One Parquet file, or those of a folder in the order of their names."""
    system, path = resolve(uri)
    return pq.read_table(path, filesystem=system)


def list_files(uri: str) -> Iterator[tuple[str, int]]:
    """(path below `uri`, bytes) of every file under a folder, in the order of their names.

    Raises FileNotFoundError where there is no such folder.
    """
    system, path = resolve(uri)
    infos = system.get_file_info(fs.FileSelector(path, recursive=True))
    for info in sorted((info for info in infos if info.type == fs.FileType.File), key=lambda info: info.path):
        yield posixpath.relpath(info.path, path), info.size
