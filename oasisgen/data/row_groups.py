"""The slices of a split in storage, read row group by row group, for splits that do not fit into Ray's object store."""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from oasisgen import storage, tables
from oasisgen.advice import of_storage, one_line
from oasisgen.data.feed import Feed
from oasisgen.data.stream import Streamed
from oasisgen.errors import InvalidFile

READERS = 8  # row groups that a process reads at the same time
FOOTERS = 256  # of files, that a process keeps

Named = dict[str, np.ndarray]  # other columns of all rows of some shards, and `checksum`: that of each image


@dataclass(frozen=True)
class RowGroups:
    """A split in storage, and its other columns in the object store."""

    source: Streamed
    named: tuple[Any, ...]  # references to `Named`, in the order of the shards

    def load(self) -> "RowGroupFeed":
        """A reader of its own for this process."""
        return RowGroupFeed(self.source, ray.get(list(self.named)))


def checksums(images: np.ndarray) -> np.ndarray:
    """Those of (N, H, W) uint8, by which it is noticed that a file is not the one that was read first: (N,) uint32."""
    return np.array([zlib.crc32(image) for image in images], np.uint32)


class RowGroupFeed(Feed):
    """Rows by number. An image costs a row group's read, up to that image; nothing is kept but footers of files."""

    def __init__(self, source: Streamed, named: list[Named]) -> None:
        super().__init__(named)
        self.source = source
        self.shards = [shard for shard in source.shards if shard.rows]
        self.starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        self.footer = lru_cache(FOOTERS)(self._footer)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.source.columns.shape

    def rows(self, numbers: np.ndarray, column: str) -> np.ndarray:
        """Rows of one column, (len(numbers), …). Raises StorageError, and InvalidFile if an image has changed."""
        if column != self.source.columns.binary:
            return super().rows(numbers, column)
        images: np.ndarray = np.empty((len(numbers), *self.image_size), self.source.columns.dtype)
        wanted: dict[tuple[int, int], dict[int, list[int]]] = {}  # shard, row group -> row there -> numbers of images
        for number, row in enumerate(numbers.tolist()):
            home, group, there = self._place(row)
            wanted.setdefault((home, group), {}).setdefault(there, []).append(number)

        def read(place: tuple[int, int]) -> None:
            for row, image in self._images(*place, max(wanted[place])):
                images[wanted[place].get(row, [])] = image

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(read, wanted))
        for row in numbers[checksums(images) != super().rows(numbers, "checksum")].tolist():
            shard = self.shards[self._place(row)[0]]
            raise InvalidFile(f"{shard.uri} {shard.otherwise}")
        return images

    def _place(self, row: int) -> tuple[int, int, int]:
        """The shard of a row, its row group, and its number there."""
        home = int(np.searchsorted(self.starts, row, side="right")) - 1
        footer, row = self.footer(home), row - int(self.starts[home])
        starts = np.cumsum([0, *(footer.row_group(group).num_rows for group in range(footer.num_row_groups))])
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return home, group, row - int(starts[group])

    def _images(self, home: int, group: int, last: int) -> Iterator[tuple[int, np.ndarray]]:
        """The images of a row group, and their numbers there, at least up to `last`."""
        columns, row = self.source.columns, 0
        with self._opened(home) as stream:
            file = pq.ParquetFile(stream, metadata=self.footer(home))
            # What comes after the last one that is wanted need not be decoded.
            for batch in file.iter_batches(tables.ROWS_PER_CHECK, [group], [columns.binary], use_threads=False):
                for value in batch.column(0):
                    yield row, np.frombuffer(value.as_buffer(), columns.dtype).reshape(columns.shape)
                    row += 1
                if row > last:
                    return

    def _footer(self, home: int) -> pq.FileMetaData:
        with self._opened(home) as stream:
            return tables.read_footer(stream, self.source.schema, self.shards[home].uri)

    @contextmanager
    def _opened(self, home: int) -> Iterator[pa.NativeFile]:
        """The file of a shard, for reading. Raises InvalidFile if it is missing or proves to be another one than was
        read first, and StorageError, also for what is read from it.
        """
        shard = self.shards[home]
        try:
            with one_line(shard.uri, "read"), storage.open_random(shard.uri) as stream:
                try:
                    yield stream
                except (*tables.DAMAGE, TypeError) as error:  # the last for an image that is null
                    if of_storage(error):
                        raise
                    raise InvalidFile(f"{shard.uri} {shard.otherwise}") from None
        except FileNotFoundError:
            raise InvalidFile(f"{shard.uri} is missing: {shard.otherwise}") from None
