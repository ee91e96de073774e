"""The sample ids of a batch, and the groups in which the model gets them. The id of a slice determines its level."""

from collections.abc import Iterable

import numpy as np

# The last bits of a convolution may depend on the batch size and the position in the batch. So an id always has the
# same position in a batch of this size, whichever ids are with it.
GROUP = 16


def level_of(ids: np.ndarray, of: int) -> np.ndarray:
    """The level of each id, for a model with `of` levels: with 32 levels, they run from 0 to 31 and start over."""
    return ids % of


def ids_of_levels(levels: list[int], of: int, first: int, end: int) -> np.ndarray:
    """The ids of some of `of` levels, ascending, from number `first` to just before `end`: (end - first,) int64."""
    turns, places = np.divmod(np.arange(first, end, dtype=np.int64), len(levels))
    return turns * of + np.array(sorted(levels), dtype=np.int64)[places]


def ids_of_ranges(ranges: Iterable[range], first: int, end: int) -> np.ndarray:
    """The ids in disjoint, ascending ranges, from number `first` to just before `end`: (end - first,) int64."""
    pieces, before = [np.empty(0, np.int64)], 0
    for ids in ranges:
        piece = ids[max(0, first - before) : max(0, end - before)]
        pieces.append(np.arange(piece.start, piece.stop, dtype=np.int64))
        before += len(ids)
    return np.concatenate(pieces)


def levels_of_ranges(ranges: Iterable[range], of: int) -> list[int]:
    """The levels of all ids in some ranges, ascending, for a model with `of` levels."""
    return np.unique(level_of(np.concatenate([np.array(ids[:of]) for ids in ranges]), of)).tolist()


def groups(ids: np.ndarray) -> np.ndarray:
    """Ids (N,) -> as few groups as possible, (G, GROUP) int64; each id at its position, -1 in empty ones."""
    positions = ids % GROUP
    turn = np.zeros_like(ids)
    for position in range(GROUP):
        turn[positions == position] = np.arange((positions == position).sum())
    table = np.full((int(turn.max(initial=-1)) + 1, GROUP), -1, dtype=np.int64)
    table[turn, positions] = ids
    return table
