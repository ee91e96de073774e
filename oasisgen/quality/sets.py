"""Slices in memory: choose the real ones that a batch is compared with, and compare them."""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data

from oasisgen import cluster
from oasisgen.data.feed import Feed, chunks
from oasisgen.progress import Progress
from oasisgen.quality.measures import OF_SLICES
from oasisgen.quality.nearest import ReferenceComparer
from oasisgen.quality.searchable import Searchable

COMPARED_AT_ONCE = 16


class Slices(NamedTuple):
    """Slices of known level; real ones name their subject."""

    images: np.ndarray  # (N, H, W) uint8
    levels: np.ndarray  # (N,)
    subjects: np.ndarray | None = None  # (N,)


class Sets(NamedTuple):
    """Three equally large sets, because FID and its kin depend on the number of slices."""

    synthetic: Slices
    real: Slices  # held-out
    training: Slices  # their scores in the place of synthetic slices are the reference


def compare_slices(
    slices: Slices, train: Searchable, held_out: Searchable, base_seed: int, progress: Progress | None = None
) -> pa.Table:
    """`level` and the measures of each slice, for slices in memory."""
    columns = {
        name: column for name, column in zip(("image", "level", "subject"), slices, strict=True) if column is not None
    }
    rows = [{"id": i, **{name: column[i] for name, column in columns.items()}} for i in range(len(slices.levels))]
    compared = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // COMPARED_AT_ONCE)).map_batches(
        ReferenceComparer(train, held_out, base_seed), batch_size=COMPARED_AT_ONCE, **cluster.tasks()
    )
    tables = []
    for batch in compared.iter_batches(batch_size=COMPARED_AT_ONCE, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        tables.append(batch.select(["level", *OF_SLICES]))  # Ray's select_columns would start a process for it
        if progress:
            progress.advance(len(batch))
    return pa.concat_tables(tables)


def select_levels(feed: Feed, wanted: np.ndarray, without: Collection[tuple[str, int]] = ()) -> Slices:
    """Real slices, as many of each level as `wanted` (M,) has, or all there are; none of `without` (case, level)."""
    levels = feed.column("level")
    fit = np.arange(len(levels))
    if without:
        named = zip(feed.column("case").tolist(), levels.tolist(), strict=True)
        fit = np.flatnonzero([name not in without for name in named])
    rows = fit[rows_of_levels(levels[fit], wanted)]
    return Slices(feed.rows(rows, "image"), levels[rows], feed.rows(rows, "subject"))


def take(slices: Slices, rows: np.ndarray) -> Slices:
    """Some rows of all columns."""
    return Slices(slices.images[rows], slices.levels[rows], None if slices.subjects is None else slices.subjects[rows])


def rows_of_levels(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Row numbers of as many slices of each level as `wanted` (M,) has, or all there are, spread over the rows."""
    picked = []
    for level, count in zip(*np.unique(wanted, return_counts=True), strict=True):
        rows = np.roll(np.flatnonzero(levels == level), level)  # other subjects for every level
        picked.append(rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)])
    return np.sort(np.concatenate(picked))


def map_images(
    actor: type, arguments: tuple[Any, ...], images: np.ndarray, batch_size: int, actors: cluster.Actors
) -> np.ndarray:
    """What actors of a class make of `data`, images (N, H, W) uint8, batch by batch: their column `data` (N, ...).

    Needs a connected Ray.
    """
    mapped = ray.data.from_numpy(list(chunks(images, batch_size))).map_batches(
        actor, fn_constructor_args=arguments, batch_size=batch_size, **cluster.pool(actors, len(images))
    )
    return np.concatenate([batch["data"].copy() for batch in mapped.iter_batches(batch_size=None)])
