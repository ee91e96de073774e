"""Read Parquet from storage without running code that a file may contain.

A Parquet file may contain an Arrow schema with extension types. Ray registers one whose values are pickles: once
`ray.data` is imported, pyarrow unpickles them while it reads a file. All reads here go through `parse`, which compares
the file's physical columns with the expected ones before it reads a value.
"""

import base64
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oasisgen import storage
from oasisgen.errors import InvalidFile

EXTENSION = b"ARROW:extension:name"  # key of a column's extension type in an Arrow schema
ROWS_PER_CHECK = 16  # after so many rows, a page that has 1 MB is closed; a reader of one row decodes few others


def to_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, rows_per_group),
        compression="zstd",
        use_dictionary=[field.name for field in table.schema if field.type != pa.binary()],  # no image is like another
        write_batch_size=ROWS_PER_CHECK,
    )
    return sink.getvalue().to_pybytes()


def parse(data: bytes, schema: pa.Schema, name: str, columns: list[str] | None = None) -> pa.Table:
    """The table in the bytes of the Parquet file `name`: all columns of `schema`, or some of them.

    Raises InvalidFile if it is not a Parquet file, or its columns differ from `schema`.
    """
    try:
        _require(pq.read_metadata(pa.BufferReader(data)), schema, name)
        table = pq.read_table(pa.BufferReader(data), columns=columns or schema.names, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(name, error) from None
    return table


def read_footer(stream: pa.NativeFile, schema: pa.Schema, name: str) -> pq.FileMetaData:
    """The footer of the Parquet file `name`. Its columns are those of `schema`, so its row groups may be read.

    Raises as `parse`.
    """
    try:
        metadata = pq.read_metadata(stream)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(name, error) from None
    _require(metadata, schema, name)
    return metadata


def read(uri: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """The Parquet file at `uri`. Raises as `parse`, and FileNotFoundError."""
    return parse(storage.read_bytes(uri), schema, uri, columns)


def write(uri: str, table: pa.Table, rows_per_group: int) -> bytes:
    """Write one Parquet file atomically; returns its bytes, for a digest."""
    data = to_bytes(table, rows_per_group)
    storage.write_bytes(uri, data)
    return data


def _damaged(name: str, error: Exception) -> InvalidFile:
    return InvalidFile(f"{name} is damaged ({' '.join(str(error).split())[:200]}): remove it and create it again")


def _require(metadata: pq.FileMetaData, schema: pa.Schema, name: str) -> None:
    """Raise InvalidFile if the columns of a file differ from `schema`."""
    if found := _stranger(metadata, schema):
        raise InvalidFile(f"{name} is not a file that this program wrote ({found}): remove it and create it again")


def _stranger(metadata: pq.FileMetaData, schema: pa.Schema) -> str:
    """The first difference between a file's columns and `schema`, in words; empty if there is none."""
    there, expected = _columns(metadata.schema), _expected(schema)
    if there != expected:
        pairs = [f"{a[0]} {a[1]}" for a in there if a not in expected] or ["a column is missing"]
        return f"column {pairs[0]}" if pairs[0] != "a column is missing" else pairs[0]
    if EXTENSION in base64.b64decode((metadata.metadata or {}).get(b"ARROW:schema", b"")):
        return "a column of an extension type"
    return ""


@lru_cache
def _expected(schema: pa.Schema) -> list[tuple[Any, ...]]:
    return _columns(pq.read_metadata(pa.BufferReader(to_bytes(schema.empty_table(), 1))).schema)


def _columns(schema: pq.ParquetSchema) -> list[tuple[Any, ...]]:
    """Name, physical and logical type, and nesting of each column."""
    columns = [schema.column(number) for number in range(len(schema))]
    return [
        (c.path, c.physical_type, str(c.logical_type), c.max_definition_level, c.max_repetition_level) for c in columns
    ]
