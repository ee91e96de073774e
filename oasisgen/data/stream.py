"""A split that is read while it is trained on, for data sets that do not fit into Ray's object store.

Each worker reads shards in a thread, in the order of `windows`, and holds those of two windows. Ray Data does not read
here: neither `streaming_split` nor one iterator per rank can start in the middle of an epoch without reading what comes
before, or gives the same batches to another number of workers.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from oasisgen.data.feed import Feed, evenly_spaced
from oasisgen.data.shards import Columns, Shard, plain
from oasisgen.data.windows import WINDOW, windowed_steps

Block = dict[str, np.ndarray]
SAMPLED = 4  # shards that a sample of rows comes from, unless it needs more: a run's first step waits for them
# Shards in the memory of a process that trains: of two windows; for the training and the held-out split one that is
# read out of turn, and three more while a shard is decoded (its table, and two copies of its images).
MOST_SHARDS = 2 * WINDOW + 2 * (1 + 3)


@dataclass(frozen=True)
class Streamed:
    """The shards of a split in storage, and what to read of them."""

    shards: tuple[Shard, ...]
    schema: pa.Schema
    columns: Columns

    def load(self) -> "StreamedFeed":
        """A reader of its own for this process."""
        return StreamedFeed(self)


def most_bytes(rows: Sequence[int], row_bytes: int) -> int:
    """Memory in bytes, at most, that streaming takes in each worker: of shards with `rows` rows each."""
    return MOST_SHARDS * max(rows, default=0) * row_bytes


class StreamedFeed(Feed):
    """Rows of a split in storage by number. `batches` reads ahead; other rows are quick only in about their order."""

    def __init__(self, source: Streamed) -> None:
        super().__init__(())
        self.source = source
        self.shards = [shard for shard in source.shards if shard.rows]
        self.sizes = [shard.rows for shard in self.shards]
        self.ends = np.cumsum(self.sizes, dtype=np.int64)
        self.thread = ThreadPoolExecutor(1)
        self.window: dict[int, Future[Block]] = {}
        self.other: tuple[int, Block] | None = None  # a shard that was read out of turn

    @property
    def image_size(self) -> tuple[int, int]:
        return self.source.columns.shape

    def column(self, name: str) -> np.ndarray:
        if name == self.source.columns.binary:
            return super().column(name)
        read = [each for each in self.source.columns.of(self.source.schema) if each in (name, "case")]
        return np.concatenate([plain(self._table(home, read), name) for home in range(len(self.shards))])

    def pieces(self) -> Iterator[Block]:
        return (self._block(home) for home in range(len(self.shards)))

    def sample(self, count: int) -> np.ndarray:
        """As `Feed.sample`, but from a few evenly spaced shards: others need not be read."""
        if not 0 < count < len(self):
            return np.arange(len(self))
        homes = evenly_spaced(len(self.shards), max(SAMPLED, math.ceil(count / min(self.sizes))))
        rows = np.concatenate([np.arange(self.ends[home] - self.sizes[home], self.ends[home]) for home in homes])
        return rows[evenly_spaced(len(rows), count)]

    def batches(
        self, batch_size: int, seed: int, epoch: int, rank: int, world: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `Feed.batches`, in another order. The rows of a batch are in memory until the next one is asked for."""
        for numbers, points, shards in windowed_steps(self.sizes, batch_size, seed, epoch, rank, world, first):
            if shards != tuple(self.window):
                self._hold(shards)
            yield numbers, points

    def _hold(self, shards: tuple[int, ...]) -> None:
        """Read these shards, unless they are held, and drop the others."""
        for home, read in self.window.items():
            if home not in shards:
                read.cancel()
        self.other = None
        self.window = {home: self.window[home] for home in shards if home in self.window}
        self.window = {home: self.window.get(home) or self.thread.submit(self._read, home) for home in shards}

    def _block(self, home: int) -> Block:
        if home in self.window:
            return self.window[home].result()
        if not self.other or self.other[0] != home:
            self.other = None  # first, so that its memory is free
            self.other = home, self._read(home)
        return self.other[1]

    def _read(self, home: int) -> Block:
        """A shard's rows. Raises as `_table`."""
        columns = self.source.columns
        block = columns.decode(self._table(home, columns.of(self.source.schema)))
        assert len(block[columns.binary]) == self.sizes[home]  # each row has its array
        return block

    def _table(self, home: int, columns: list[str]) -> pa.Table:
        """Some columns of a shard. Raises InvalidFile if it is missing or its digest differs."""
        (table,) = self.shards[home].read(self.source.schema, columns)
        return table
