"""A split of real slices, prepared to be searched: once for all processes, which share its thumbnails.

Thumbnails lie in Ray's object store. The slices themselves lie there too if they fit; if not, the few that are compared
pixel by pixel are read from storage.
"""

import ctypes
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from oasisgen import actor, cluster
from oasisgen.data.feed import Feed, Source, Stored, chunks
from oasisgen.data.row_groups import Named, RowGroups, checksums
from oasisgen.data.slices import DataSet
from oasisgen.data.stream import Streamed
from oasisgen.progress import say
from oasisgen.quality.thumbnails import (
    COARSE,
    FINE,
    Thumbnails,
    Window,
    centre,
    centred,
    rotation,
    thumbnail,
    thumbnail_size,
    thumbnails,
)

SHARDS = 32  # in a block: with more, a search is faster, and the task that prepares a block takes more memory (0.6 GB)
SAMPLED = 512  # slices that say how to rotate the thumbnails of a split
NAMED = "case", "subject", "level"
COMPUTED = "as_they_lie", "centred", "centre"
NAMES_BYTES = 512  # of a slice, at most: its case, subject and level, places, centre and checksum


class Rotations(NamedTuple):
    """How the thumbnails of a split are rotated, in all blocks alike: see `thumbnails.rotation`."""

    as_they_lie: np.ndarray  # (D, T) float32
    centred: np.ndarray  # (D, T) float32


class SearchBlock(NamedTuple):
    """What a search knows of the slices of some shards. "By place" is ordered by level, then by row."""

    start: int  # the first row, in the split
    rows: np.ndarray  # (N,): by place -> number of the row in the block
    levels: np.ndarray  # (N,), by place
    centres: np.ndarray  # (N, 2), by row
    named: Named  # `case`, `subject`, `level` and others, by row
    as_they_lie: Thumbnails
    centred: Thumbnails

    def window(self, lowest: int, highest: int, without: str | None) -> Window:
        """The slices of some levels; those of one subject are not wanted."""
        first, last = np.searchsorted(self.levels, [lowest, highest + 1])
        rows = self.rows[first:last]
        wanted = np.ones(len(rows), bool) if without is None else self.named["subject"][rows] != without
        return Window(int(first), wanted, self.levels[first:last], self.start + rows)


def rotations(slices: Feed) -> Rotations:
    """Those that suit a sample of some slices."""
    images = slices.rows(slices.sample(SAMPLED), "image")
    return Rotations(
        rotation(np.stack([thumbnail(image) for image in images])),
        rotation(np.stack([thumbnail(centred(image)) for image in images])),
    )


def search_block(
    start: int, pieces: Iterable[dict[str, np.ndarray]], rotated: Rotations, check: bool = False
) -> SearchBlock:
    """Prepare consecutive rows of a split, from `start` on, for searches. `check`: with a checksum of each image."""
    columns: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        images = piece["image"]
        of_piece = {name: piece[name] if name == "level" else piece[name].astype(str) for name in NAMED}
        if check:
            of_piece["checksum"] = checksums(images)
        of_piece["centre"] = np.array([centre(image) for image in images])
        of_piece["as_they_lie"] = np.stack([thumbnail(image) for image in images])
        of_piece["centred"] = np.stack([thumbnail(centred(image)) for image in images])
        for name, column in of_piece.items():
            columns.setdefault(name, []).append(column)
    named = {name: np.concatenate(columns[name]) for name in columns if name not in COMPUTED}
    rows = np.argsort(named["level"], kind="stable")
    as_they_lie, in_the_middle = (
        thumbnails(np.concatenate(columns.pop(name))[rows], getattr(rotated, name)) for name in Rotations._fields
    )
    return SearchBlock(
        start, rows, named["level"][rows], np.concatenate(columns["centre"]), named, as_they_lie, in_the_middle
    )


@dataclass(frozen=True)
class Searchable:
    """A split whose rows can be read and searched."""

    slices: Source
    blocks: tuple[Any, ...]  # references to `SearchBlock`
    rotations: Any  # reference to `Rotations`

    def load(self) -> Feed:
        """Access to its rows from this process."""
        return self.slices.load()

    def load_blocks(self) -> list[SearchBlock]:
        """Map what a search knows into this process."""
        return list(ray.get(list(self.blocks)))

    def load_rotations(self) -> Rotations:
        """Map how its thumbnails are rotated."""
        return ray.get(self.rotations)


def search_bytes(data: DataSet, split: str) -> int:
    """The most object store that searching a split takes, beside its slices: about 11 kB per slice."""
    thumbnail_pixels = math.prod(thumbnail_size(data.image_size))
    numbers = thumbnail_pixels + COARSE + FINE  # of a slice, float32, for each kind of thumbnail
    return data.count(split) * (2 * 4 * numbers + NAMES_BYTES) + 2 * 4 * FINE * thumbnail_pixels


def searchable(split: Stored | Streamed) -> Searchable:
    """Prepare a split for searches, with a Ray task for each block. Raises as reading it."""
    prepare = ray.remote(_prepare).options(num_cpus=cluster.ACTOR_CPUS, num_returns=2)
    if isinstance(split, Stored):
        pieces: list[Stored | Streamed] = [Stored(some) for some in chunks(split.blocks, SHARDS)]
    else:
        pieces = [replace(split, shards=some) for some in chunks(split.shards, SHARDS)]
    starts = np.cumsum([0, *(len(piece.load()) for piece in pieces)])
    if isinstance(split, Streamed):
        say("reference", f"reads {starts[-1]} training slices, for what they are searched by")
    rotated = ray.put(ray.get(ray.remote(_rotations).options(num_cpus=cluster.ACTOR_CPUS).remote(split)))
    tasks: list[Any] = [
        prepare.remote(int(start), piece, rotated)
        for start, piece, rows in zip(starts, pieces, np.diff(starts), strict=False)
        if rows
    ]
    blocks, named = [], []
    while tasks:  # The driver owns them, as it owns the slices (see `data.feed.store`).
        block, names = tasks.pop(0)
        blocks.append(ray.put(ray.get(block)))
        named.append(ray.put(ray.get(names)))
    return Searchable(split if isinstance(split, Stored) else RowGroups(split, tuple(named)), tuple(blocks), rotated)


def _rotations(split: Stored | Streamed) -> Rotations:
    actor.set_up()
    rotated = rotations(split.load())
    _release()
    return rotated


def _prepare(start: int, split: Stored | Streamed, rotated: Rotations) -> tuple[SearchBlock, Named]:
    actor.set_up()
    block = search_block(start, split.load().pieces(), rotated, check=isinstance(split, Streamed))
    _release()
    return block, block.named


def _release() -> None:
    """Give back what Arrow and glibc keep of the shards that were read: this process will compare slices next."""
    pa.default_memory_pool().release_unused()
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
