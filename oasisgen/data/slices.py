"""The packed data set: its file names, its schema, and reading its slices."""

import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray.data

from oasisgen import storage
from oasisgen.config.data import Shape
from oasisgen.data.description import Covariate, DataSetDescription, LabelClass, Split, read_description
from oasisgen.data.feed import Stored, store
from oasisgen.data.shards import Columns, Shard, SliceKey, read_shards
from oasisgen.data.stream import Streamed
from oasisgen.errors import UserError

SPLITS = ("train", "validate", "test")
FEATURES = "features"  # folder of a data set's feature network (see training/shared_features.py)
BLOCK = 64  # slices per block where model actors share them
SIZES = [("level", pa.int16()), ("height", pa.int16()), ("width", pa.int16())]
PHYSICAL = {"number": pa.float64(), "text": pa.string()}  # kind of a covariate -> type of its column


def columns_of(label_classes: Sequence[LabelClass], covariates: Sequence[Covariate]) -> pa.Schema:
    """The columns of the Parquet files of a data set with these label classes (none: no label maps) and covariates."""
    columns = [("case", pa.string()), ("subject", pa.string()), *SIZES]
    columns += [("image", pa.binary())]  # raw uint8 rows
    columns += [("labels", pa.binary())] if label_classes else []  # raw uint8 rows, a class per pixel; or null
    return pa.schema(columns + [(covariate.name, PHYSICAL[covariate.kind]) for covariate in covariates])


def schema_of(description: DataSetDescription) -> pa.Schema:
    """The columns of a data set's Parquet files."""
    if description.schema_version == 1:
        return pa.schema([("case", pa.string()), *SIZES, ("image", pa.binary())])
    return columns_of(description.label_classes, description.covariates)


def file_name(case: str, level: int) -> str:
    """A slice's name in the usual OASIS layout."""
    return f"case_{case}_slice_{level}.nii.png"


@dataclass(frozen=True)
class DataSet:
    """A packed data set: its URI and its `dataset.json`."""

    uri: str
    description: DataSetDescription

    @property
    def fingerprint(self) -> str:
        """The digest of all shards."""
        return self.description.fingerprint

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return self.description.splits

    def split(self, name: str) -> Split:
        """A split. Raises UserError if the data set lacks it."""
        if name not in self.splits:
            has = ", ".join(self.splits)
            raise UserError(f"data set {self.uri} has no {name} split (it has {has}): pack a source folder with one")
        return self.splits[name]

    def parts(self, split: str) -> list[str]:
        """URIs of a split's Parquet files. Raises as `split`."""
        return [storage.join(self.uri, split, part.name) for part in self.split(split).parts]

    def count(self, split: str) -> int:
        """Number of slices in a split. Raises as `split`."""
        return self.split(split).slices

    def pixels(self, *splits: str) -> int:
        """Size in memory, in bytes, of the slices of some splits. Raises as `split`."""
        return sum(map(self.count, splits)) * math.prod(self.image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every slice in pixels."""
        return self.description.image_size

    @property
    def levels(self) -> int:
        """Number of levels: the highest level plus 1."""
        return self.description.levels

    @property
    def shape(self) -> Shape:
        """Size of its slices, and number of levels."""
        return Shape(*self.image_size, self.levels)

    @property
    def label_classes(self) -> tuple[LabelClass, ...]:
        """The classes of its label maps; none if it has no label maps, or only such of one class."""
        classes = self.description.label_classes
        return classes if len(classes) > 1 else ()

    def degenerate_in(self, split: str) -> frozenset[tuple[str, int]]:
        """Case and level of a split's slices that are blank or have the same pixels as a slice of any split."""
        groups = (self.description.blank, *self.description.equal)
        return frozenset((name.case, name.level) for group in groups for name in group if name.split == split)

    def file_bytes(self, split: str) -> int:
        """Size of a split's files in bytes. Raises as `split`."""
        return sum(part.bytes for part in self.split(split).parts)

    def require_whole(self, split: str) -> None:
        """Raise UserError if a shard of a split is missing or its size has changed since it was packed.

        This takes one listing, so it runs before any long work starts; `read_slices` also checks the digests.
        """
        there: dict[str, int] = {}
        with suppress(FileNotFoundError):
            there = dict(storage.list_files(storage.join(self.uri, split)))
        for uri, part in zip(self.parts(split), self.split(split).parts, strict=True):
            found = there.get(part.name)
            if found != part.bytes:
                fault = "is missing" if found is None else f"has {found} bytes instead of {part.bytes}"
                raise UserError(f"{uri} {fault}: the data set is damaged; remove its folder and pack it again")


def open_data_set(uri: str) -> DataSet:
    """Open a data set. Raises UserError if it is missing, damaged, or has an unsupported schema or image size."""
    storage.check(uri, write=False)
    try:
        return DataSet(storage.absolute(uri), read_description(uri))
    except FileNotFoundError:
        raise UserError(f"no packed data set at {uri} (dataset.json is missing): create it with jobs/pack.py") from None


def shards_of(data: DataSet, split: str) -> list[Shard]:
    """A split's Parquet files, each with its digest."""
    return [
        Shard(
            uri,
            part.sha256,
            part.slices,
            "is not the file that was packed (other sha256): start the job again if the data set was packed again; "
            "if not, it is damaged, so remove its folder and pack it again",
        )
        for uri, part in zip(data.parts(split), data.split(split).parts, strict=True)
    ]


def read_slices(data: DataSet, *splits: str, shared: bool = False) -> ray.data.Dataset:
    """Splits, one after the other, as a Ray data set of `case` and `subject` str, `level` int64 and `image` (H, W)
    uint8, ordered by case and level.

    Each shard becomes one block, which is fastest to read, or several that actors can share. Raises UserError if a
    shard is missing or has another size. Reading a shard raises InvalidFile if its digest differs: the file is damaged,
    or the data set was packed again after `data` was opened.
    """
    for split in splits:
        data.require_whole(split)
    shards = [shard for split in splits for shard in shards_of(data, split)]
    pieces = -(-max((shard.rows for shard in shards), default=1) // BLOCK) if shared else 1
    return read_shards(shards, schema_of(data.description), image_columns(data), pieces)


def stream_slices(data: DataSet, split: str) -> Streamed:
    """The same rows, to be read by the processes that need them. Raises as `read_slices`."""
    data.require_whole(split)
    return Streamed(tuple(shards_of(data, split)), schema_of(data.description), image_columns(data))


def source_of(feed: str, data: DataSet, split: str) -> Stored | Streamed:
    """The slices of a split, as the workers will get them by this feed, `memory` or `stream`. Raises as
    `read_slices`.
    """
    return store(read_slices(data, split)) if feed == "memory" else stream_slices(data, split)


def image_columns(data: DataSet) -> Columns:
    """What is read of a slice."""
    return Columns("image", np.uint8, data.image_size, ("case", "subject", "level"))


def read_labels(data: DataSet, split: str, wanted: Collection[SliceKey] | None = None) -> ray.data.Dataset:
    """The label maps of a split, or of the slices in `wanted`, as a Ray data set of `case` str, `level` int64 and
    `labels` (H, W) uint8.

    They have the order of its slices; slices without a label map are left out. Raises as `read_slices`.
    """
    data.require_whole(split)
    columns = Columns("labels", np.uint8, data.image_size, ("case", "level"), wanted)
    return read_shards(shards_of(data, split), schema_of(data.description), columns)
