"""Parquet files with known digests as a Ray data set: each is read once, and refused if its digest differs."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from oasisgen import cluster, storage, tables
from oasisgen.errors import InvalidFile


@dataclass(frozen=True)
class Shard:
    """A Parquet file with its digest, and the error message for a file with another digest."""

    uri: str
    sha256: str
    rows: int
    otherwise: str  # the error message after the URI

    def read(self, schema: pa.Schema) -> Iterable[pa.Table]:
        """Its rows as one table. Raises InvalidFile if the digest or the columns differ."""
        try:
            data = storage.read_bytes(self.uri)
        except FileNotFoundError:
            raise InvalidFile(f"{self.uri} is missing: {self.otherwise}") from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise InvalidFile(f"{self.uri} {self.otherwise}")
        yield tables.parse(data, schema, self.uri)


class _Shards(Datasource):
    """One read task per shard; Ray splits its output into the requested number of blocks."""

    def __init__(self, shards: Sequence[Shard], schema: pa.Schema, row_bytes: int) -> None:
        super().__init__()
        self.shards, self.schema, self.row_bytes = shards, schema, row_bytes

    def estimate_inmemory_data_size(self) -> int:
        return sum(shard.rows for shard in self.shards) * self.row_bytes

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(shard.read, self.schema),
                BlockMetadata(shard.rows, shard.rows * self.row_bytes, None, None),
                self.schema,
            )
            for shard in self.shards
        ]


def arrays(table: pa.Table, binary: str, dtype: type, side: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The column `binary` as an array (N, side, side), and other columns, with integers as int64."""
    values: np.ndarray = np.frombuffer(b"".join(table[binary].to_pylist()), dtype)
    others = {name: table[name].to_numpy() for name in columns}
    others = {name: other.astype(np.int64) if other.dtype.kind == "i" else other for name, other in others.items()}
    return others | {binary: values.reshape(-1, side, side)}


def read_shards(
    shards: Sequence[Shard],
    schema: pa.Schema,
    binary: str,
    dtype: type,
    side: int,
    columns: Sequence[str],
    pieces: int = 1,
) -> ray.data.Dataset:
    """The rows of all shards in order, in `pieces` blocks per shard: `columns`, and `binary` decoded to arrays
    (side, side) of `dtype`.
    """
    source = _Shards(shards, schema, np.dtype(dtype).itemsize * side**2)
    rows = ray.data.read_datasource(source, override_num_blocks=pieces * len(shards), **cluster.tasks())
    wanted = {"binary": binary, "dtype": dtype, "side": side, "columns": columns}
    return rows.map_batches(arrays, fn_kwargs=wanted, batch_size=None, batch_format="pyarrow", **cluster.tasks())
