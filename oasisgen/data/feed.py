"""A split in Ray's object store, and the order of its rows in each epoch. `stream` is for splits that do not fit there.

Ray Data reads and decodes the shards once; all workers of a node then map the same memory, without a copy. The order is
a pure function of (seed, epoch): it does not depend on the number of workers, and a resumed run gets the same batches
as an uninterrupted one. (Ray's `streaming_split` guarantees neither.)
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import ray
import ray.data

T = TypeVar("T")
FeedName = Literal["memory", "stream"]  # how slices reach those who need them: see `slices.source_of`


@dataclass(frozen=True)
class RowNumbers:
    """Rows that something else looks up: only their number, and the order of each epoch."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    def batches(
        self, batch_size: int, seed: int, epoch: int, rank: int, world: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `epoch_batches`."""
        return epoch_batches(self.rows, batch_size, seed, epoch, rank, world, first)


class Source(Protocol):
    """What a job hands to its workers: a split in memory (`Stored`) or in storage (`stream.Streamed`)."""

    def load(self) -> "Feed":
        """Access to its rows from this process."""
        ...


@dataclass(frozen=True)
class Stored:
    """References to a data set's blocks in the object store, each a dict of column -> array."""

    blocks: tuple[Any, ...]

    def load(self) -> "Feed":
        """Map the blocks into this process."""
        return Feed(ray.get(list(self.blocks)))


def store(data: ray.data.Dataset) -> Stored:
    """Execute a Ray data set and keep its rows in the object store.

    The driver owns the blocks, so the loss of another node loses none. Ray could recompute lost blocks, but only on a
    free CPU, and the training workers may have reserved all of them.
    """
    return Stored(tuple(ray.put(block) for block in data.iter_batches(batch_size=None)))


class Feed:
    """Random access to the rows of a data set by number."""

    def __init__(self, blocks: Sequence[dict[str, np.ndarray]]) -> None:
        self.blocks = [block for block in blocks if len(next(iter(block.values())))]
        sizes = [len(next(iter(block.values()))) for block in self.blocks]
        self.ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def rows(self, numbers: np.ndarray, column: str) -> np.ndarray:
        """Rows of one column, (len(numbers), …), copied from shared memory."""
        found = [block[column][row] for block, row in self._find(numbers)]
        return np.stack(found) if found else next(iter(self.pieces()))[column][:0]

    def column(self, name: str) -> np.ndarray:
        """A column of all rows."""
        return np.concatenate([piece[name] for piece in self.pieces()])

    def pieces(self) -> Iterator[dict[str, np.ndarray]]:
        """All rows, block by block."""
        return iter(self.blocks)

    def sample(self, count: int) -> np.ndarray:
        """Numbers of `count` rows of all parts of the split, in order; of all rows as in `evenly_spaced`."""
        return evenly_spaced(len(self), count)

    def batches(
        self, batch_size: int, seed: int, epoch: int, rank: int, world: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `epoch_batches`."""
        return RowNumbers(len(self)).batches(batch_size, seed, epoch, rank, world, first)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image."""
        height, width = self.blocks[0]["image"].shape[1:]
        return height, width

    def crops(self, numbers: np.ndarray, corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A crop of `size` (h, w) of each image, at top-left corners (N, 2): (N, h, w) uint8."""
        found, (h, w) = zip(self._find(numbers), corners, strict=True), size
        return np.stack([block["image"][row, y : y + h, x : x + w] for (block, row), (y, x) in found])

    def _find(self, numbers: np.ndarray) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        homes = np.searchsorted(self.ends, numbers, side="right")
        for home, number in zip(homes, numbers, strict=True):
            start = self.ends[home - 1] if home else 0
            yield self._block(home), int(number - start)

    def _block(self, home: int) -> dict[str, np.ndarray]:
        return self.blocks[home]


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches in an epoch; the rows left over after shuffling are skipped in that epoch."""
    return rows // batch_size


def epoch_batches(
    rows: int, batch_size: int, seed: int, epoch: int, rank: int, world: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each step of an epoch from `first` on: this rank's row numbers (B,) and random points in [0, 1)^2 (B, 2).

    The batches of all ranks in one step together are the batch that a single worker would get.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(rows)
    points = random.random((rows, 2))
    for step in range(first, steps_per_epoch(rows, batch_size)):
        mine = slice(step * batch_size + rank, (step + 1) * batch_size, world)
        yield order[mine], points[mine]


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, prefetched: a thread prepares the next one while the caller works on the current one."""
    source = iter(items)
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, source, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, source, None)
            yield item


def evenly_spaced(rows: int, count: int) -> np.ndarray:
    """`count` evenly spaced row numbers; all rows if `count` is 0 or at least `rows`."""
    if not 0 < count < rows:
        return np.arange(rows)
    return np.linspace(0, rows - 1, count).round().astype(np.int64)


def chunks(rows: Any, size: int) -> Iterator[Any]:
    """Consecutive slices of `rows`, each of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
