"""Real slices with their label maps."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray.data

from oasisgen.data.shards import Columns, SliceKey, only, plain, read_shards
from oasisgen.data.slices import DataSet, schema_of, shards_of
from oasisgen.errors import UserError

NAME = "case", "level"


class Labelled(NamedTuple):
    """Which slices of a split have a label map, in the order of the split."""

    cases: np.ndarray  # (N,) str
    levels: np.ndarray  # (N,) int64
    subjects: np.ndarray  # (N,) str

    def names(self, rows: np.ndarray) -> frozenset[SliceKey]:
        """Case and level of some rows."""
        return frozenset(zip(self.cases[rows].tolist(), self.levels[rows].tolist(), strict=True))


@dataclass(frozen=True)
class PairColumns(Columns):
    """Reads `image` and `labels` of the slices that have a label map."""

    def decode(self, table: pa.Table) -> dict[str, np.ndarray]:
        """As that of Columns, with `labels` (N, H, W) beside `image`."""
        table = only(table, self.wanted)
        table = table.filter(table["labels"].is_valid())
        labels = Columns("labels", self.dtype, self.shape, ()).decode(table)
        return Columns("image", self.dtype, self.shape, (*NAME, "subject")).decode(table) | labels


@dataclass(frozen=True)
class LabelledNames(Columns):
    """Reads `others` of the slices that have a label map. Ray's select_columns would start a process to do that."""

    def decode(self, table: pa.Table) -> dict[str, np.ndarray]:
        """As that of Columns, without the label maps."""
        table = self.there(table)
        return {name: plain(table, name) for name in self.others}


def labelled(data: DataSet, split: str) -> Labelled:
    """Which slices of a split have a label map. Raises as `read_slices`."""
    data.require_whole(split)
    columns = LabelledNames("labels", np.uint8, data.image_size, (*NAME, "subject"))
    named = read_shards(shards_of(data, split), schema_of(data.description), columns).iter_batches(batch_size=None)
    blocks = [block for block in named if len(block["case"])]
    empty: np.ndarray = np.array([], object)
    return Labelled(*(np.concatenate([empty, *(block[name] for block in blocks)]) for name in (*NAME, "subject")))


def drawn(data: DataSet, split: str, most: int) -> frozenset[SliceKey] | None:
    """At most so many of the slices of a split that have a label map, drawn at random but always the same; None: all.

    Raises as `read_slices`.
    """
    there = labelled(data, split)
    if len(there.cases) <= most:
        return None
    return there.names(np.random.default_rng(0).permutation(len(there.cases))[:most])


def few_of(subjects: np.ndarray, count: int, setting: str) -> np.ndarray:
    """The rows of `count` of the `subjects` (N,). Raises UserError, which names the setting, unless there are more.

    Which ones is decided by their names alone: they are the first in the order of the digests of the names. So the few
    whose labels a label decoder and a segmenter see are the same.
    """
    digests = {name: hashlib.sha256(str(name).encode()).hexdigest() for name in set(subjects.tolist())}
    if len(digests) <= count:
        raise UserError(
            f"{setting} is {count}: the training split has label maps of {len(digests)} subjects; it must be below "
            "that, or 0"
        )
    return np.flatnonzero(np.isin(subjects, sorted(digests, key=digests.__getitem__)[:count]))


def read_pairs(data: DataSet, split: str, wanted: Collection[SliceKey]) -> ray.data.Dataset:
    """The slices of a split that are `wanted`, (case, level), as a Ray data set of `case`, `subject`, `level`, and
    `image` and `labels`, both (H, W) uint8.

    They have the order of the split; slices without a label map are left out. Raises as `read_slices`.
    """
    data.require_whole(split)
    columns = PairColumns("image", np.uint8, data.image_size, (*NAME, "subject", "labels"), wanted)
    return read_shards(shards_of(data, split), schema_of(data.description), columns)
