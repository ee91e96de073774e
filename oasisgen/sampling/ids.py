"""Which sample ids a batch is made of, and how they share the model's batches. An id decides its level."""

import numpy as np

from oasisgen.config.data import LEVELS

# Convolutions of another batch size, or in another place of the batch, may differ in the last bit. So an id always
# passes the model in the same place of a batch of this size, whoever sits beside it.
GROUP = 16


def level_of(ids: np.ndarray) -> np.ndarray:
    """The level of each id: the levels in turn."""
    return ids % LEVELS


def ids_of_levels(levels: list[int], first: int, end: int) -> np.ndarray:
    """The `first` to before `end` of the ids of some levels, ascending: (end - first,) int64."""
    turns, places = np.divmod(np.arange(first, end, dtype=np.int64), len(levels))
    return turns * LEVELS + np.array(sorted(levels), dtype=np.int64)[places]


def groups(ids: np.ndarray) -> np.ndarray:
    """Ids (N,) as few groups of GROUP places, (G, GROUP) int64; each in its place, -1 where nobody sits."""
    seats = ids % GROUP
    turn = np.zeros_like(ids)
    for seat in range(GROUP):
        turn[seats == seat] = np.arange((seats == seat).sum())
    table = np.full((int(turn.max(initial=-1)) + 1, GROUP), -1, dtype=np.int64)
    table[turn, seats] = ids
    return table
