"""The order of the rows in an epoch of a streamed feed: shuffled in two levels, so that few shards are held at once.

The shards are permuted and cut into windows; then the rows of each window are permuted. The order is a pure function of
the shards' sizes, the seed and the epoch. Any step can be found without those before it.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from oasisgen.data.feed import chunks, steps_per_epoch

WINDOW = 4  # shards: 4,096 slices or somewhat more


class Step(NamedTuple):
    """One rank's part of a batch."""

    numbers: np.ndarray  # (B,): rows, counted over all shards in their stored order
    points: np.ndarray  # (B, 2): random, in [0, 1)^2
    shards: tuple[int, ...]  # to hold: those of the step's window and of the next one, the most urgent first


def windowed_steps(
    sizes: Sequence[int], batch_size: int, seed: int, epoch: int, rank: int, world: int, first: int = 0
) -> Iterator[Step]:
    """The steps of an epoch from `first` on, over shards with `sizes` rows each, at least one.

    The batches of all ranks in one step together are the batch that a single worker would get. The rows left over
    after the last full batch are skipped in that epoch.
    """
    windows = list(chunks(np.random.default_rng([seed, epoch]).permutation(len(sizes)), WINDOW))
    ends = np.cumsum(sizes)
    bounds = np.cumsum([0, *(sum(sizes[shard] for shard in window) for window in windows)])

    @lru_cache(2)
    def shuffled(window: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a window in their order, and a point for each."""
        random = np.random.default_rng([seed, epoch, 1 + window])  # NumPy takes [seed, epoch, 0] for [seed, epoch]
        rows = np.concatenate([np.arange(ends[shard] - sizes[shard], ends[shard]) for shard in windows[window]])
        return random.permutation(rows), random.random((len(rows), 2))

    for step in range(first, steps_per_epoch(int(bounds[-1]), batch_size)):
        start, end = step * batch_size, (step + 1) * batch_size
        head, tail = (int(each) for each in np.searchsorted(bounds, [start, end - 1], side="right") - 1)
        rows, points = map(np.concatenate, zip(*map(shuffled, range(head, tail + 1)), strict=True))
        mine = slice(start - bounds[head] + rank, end - bounds[head], world)
        held = np.concatenate(windows[head : max(tail, head + 1) + 1])
        yield Step(rows[mine], points[mine], tuple(held.tolist()))
