"""Read Parquet from storage without running code that a file may contain.

A Parquet file may contain an Arrow schema with extension types. Ray registers some whose values, or whose parameters,
are pickles: once `ray.data` is imported, pyarrow may unpickle them while it reads a file, and the parameters even if it
reads only the footer. So `read_footer`, through which all files go, looks for extension types in the footer's bytes
before pyarrow gets them, and compares the file's physical columns with the expected ones before a value is read.
"""

import base64
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from oasisgen import storage
from oasisgen.errors import InvalidFile

EXTENSION = b"ARROW:extension:name"  # key of a column's extension type in an Arrow schema
# The same in a footer, which holds the schema in base64: what it is after 0, 1 or 2 other bytes.
IN_BASE64 = [
    base64.b64encode(bytes(before) + EXTENSION)[-(-before * 8 // 6) : (before + len(EXTENSION)) * 8 // 6]
    for before in range(3)
]
TAIL_BYTES = 2**16  # read at once from the end of a file: most footers are shorter
MAGIC = b"PAR1"  # begins and ends a Parquet file
DAMAGE = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises; the last for a name that is not UTF-8
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
    read_footer(pa.BufferReader(data), schema, name)
    try:
        table = pq.read_table(pa.BufferReader(data), columns=columns or schema.names, use_threads=False)
        table.validate(full=True)
    except DAMAGE as error:
        raise _damaged(name, error) from None
    return table


def read_footer(stream: pa.NativeFile, schema: pa.Schema, name: str) -> pq.FileMetaData:
    """The footer of the Parquet file `name`. Its columns are those of `schema`, so its row groups may be read.

    Raises as `parse`, and OSError if the stream cannot be read.
    """
    footer = _footer_bytes(stream)
    if any(spelling in footer for spelling in IN_BASE64):
        raise _strange(name, "a column of an extension type")
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        found = _stranger(metadata, schema)
    except DAMAGE as error:
        raise _damaged(name, error) from None
    if found:
        raise _strange(name, found)
    return metadata


def _footer_bytes(stream: pa.NativeFile) -> bytes:
    """The end of a file from where its footer begins; all of a file that is not Parquet, if it is small."""
    size = stream.size()
    tail = stream.read_at(TAIL_BYTES, max(0, size - TAIL_BYTES))
    length = int.from_bytes(tail[-8:-4], "little") + 8  # the footer, its length in 4 bytes, MAGIC
    if len(tail) < length <= size:
        tail = stream.read_at(length, size - length)
    return tail[-length:]


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


def _strange(name: str, found: str) -> InvalidFile:
    return InvalidFile(f"{name} is not a file that this program wrote ({found}): remove it and create it again")


def _stranger(metadata: pq.FileMetaData, schema: pa.Schema) -> str:
    """The first difference between a file's columns and `schema`, in words; empty if there is none."""
    there, expected = _columns(metadata.schema), _expected(schema)
    if there == expected:
        return ""
    return next((f"column {a[0]} {a[1]}" for a in there if a not in expected), "a column is missing")


@lru_cache
def _expected(schema: pa.Schema) -> list[tuple[Any, ...]]:
    return _columns(pq.read_metadata(pa.BufferReader(to_bytes(schema.empty_table(), 1))).schema)


def _columns(schema: pq.ParquetSchema) -> list[tuple[Any, ...]]:
    """Name, physical and logical type, and nesting of each column."""
    columns = [schema.column(number) for number in range(len(schema))]
    return [
        (c.path, c.physical_type, str(c.logical_type), c.max_definition_level, c.max_repetition_level) for c in columns
    ]
