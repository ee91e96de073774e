"""Parquet files with known digests as a Ray data set: each is read once, and refused if its digest differs."""

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from oasisgen import cluster, storage, tables
from oasisgen.errors import InvalidFile

SliceKey = tuple[str, int]  # case and level


@dataclass(frozen=True)
class Shard:
    """A Parquet file with its digest, and the error message for a file with another digest."""

    uri: str
    sha256: str
    rows: int
    otherwise: str  # the error message after the URI

    def read(self, schema: pa.Schema, columns: list[str] | None = None) -> Iterable[pa.Table]:
        """Its rows as one table: all columns of `schema`, or some of them.

        Raises InvalidFile if the digest or the columns differ."""
        try:
            data = storage.read_bytes(self.uri)
        except FileNotFoundError:
            raise InvalidFile(f"{self.uri} is missing: {self.otherwise}") from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InvalidFile(f"{self.uri} {self.otherwise}")
        yield tables.parse(data, schema, self.uri, columns)


@dataclass(frozen=True)
class Columns:
    """The columns to read: one of arrays, stored as their bytes, and others."""

    binary: str
    dtype: type
    shape: tuple[int, int]  # of each array
    others: tuple[str, ...]
    wanted: Collection[SliceKey] | None = None  # only of these slices

    @property
    def row_bytes(self) -> int:
        """Size of one array in bytes."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def of(self, schema: pa.Schema) -> list[str]:
        """Their names in files of `schema`: files of schema version 1 have no column `subject`."""
        return [name for name in (*self.others, self.binary) if name in schema.names]

    def there(self, table: pa.Table) -> pa.Table:
        """The rows that are wanted and have a value of `binary`."""
        table = only(table, self.wanted)
        return table.filter(pc.is_valid(table[self.binary]))

    def decode(self, table: pa.Table) -> dict[str, np.ndarray]:
        """`binary` as an array (N, H, W), and the other columns as `plain` gives them; without rows that lack it."""
        table = self.there(table)
        values: np.ndarray = np.frombuffer(b"".join(table[self.binary].to_pylist()), self.dtype)
        return {name: plain(table, name) for name in self.others} | {self.binary: values.reshape(-1, *self.shape)}


def plain(table: pa.Table, name: str) -> np.ndarray:
    """A column of texts or numbers, (N,), integers as int64. In schema version 1, the subject is the case."""
    column = table[name if name in table.column_names else "case"].to_numpy()
    return column.astype(np.int64) if column.dtype.kind == "i" else column


def only(table: pa.Table, wanted: Collection[SliceKey] | None) -> pa.Table:
    """The rows of these slices; all for None."""
    if wanted is None:
        return table
    keys = zip(table["case"].to_pylist(), table["level"].to_pylist(), strict=True)
    return table.filter(pa.array([key in wanted for key in keys], pa.bool_()))


class _Shards(Datasource):
    """One read task per shard; Ray splits its output into the requested number of blocks."""

    def __init__(self, shards: Sequence[Shard], schema: pa.Schema, columns: Columns) -> None:
        super().__init__()
        self.shards, self.schema, self.columns = shards, schema, columns

    def estimate_inmemory_data_size(self) -> int:
        return sum(shard.rows for shard in self.shards) * self.columns.row_bytes

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        names = self.columns.of(self.schema)
        read = pa.schema([self.schema.field(name) for name in names])
        return [
            ReadTask(
                partial(shard.read, self.schema, names),
                BlockMetadata(shard.rows, shard.rows * self.columns.row_bytes, None, None),
                read,
            )
            for shard in self.shards
        ]


def read_shards(shards: Sequence[Shard], schema: pa.Schema, columns: Columns, pieces: int = 1) -> ray.data.Dataset:
    """The rows of all shards in order, in `pieces` blocks per shard, with arrays (H, W) instead of their bytes."""
    source = _Shards(shards, schema, columns)
    rows = ray.data.read_datasource(source, override_num_blocks=pieces * len(shards), **cluster.tasks())
    return rows.map_batches(columns.decode, batch_size=None, batch_format="pyarrow", **cluster.tasks())
