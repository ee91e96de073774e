"""`dataset.json`, the record of a data set that packing writes and every other job reads."""

from dataclasses import asdict, dataclass
from typing import Any

from oasisgen import documents, storage
from oasisgen.config.data import IMAGE_SIZE
from oasisgen.documents import Count, Name
from oasisgen.errors import UserError

FILE = "dataset.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PackedPart:
    """A Parquet file of a data set."""

    name: Name
    slices: Count
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Split:
    """One split of a data set."""

    slices: Count
    cases: dict[str, Count]  # case -> slices
    levels: tuple[Count, ...] | None = None  # None in data sets of older versions, which do not list them
    parts: tuple[PackedPart, ...] = ()


@dataclass(frozen=True)
class RejectedFile:
    """A file that was not packed."""

    file: str
    reason: str


@dataclass(frozen=True, order=True)
class SliceName:
    """A slice of a data set."""

    split: Name
    case: str
    level: Count

    def __str__(self) -> str:
        return f"{self.split} case {self.case} level {self.level}"


@dataclass(frozen=True)
class _Versioned:
    """The field that every version of `dataset.json` has."""

    schema_version: int


@dataclass(frozen=True, kw_only=True)
class DataSetDescription:
    """`dataset.json`. Fields with a default are missing in data sets of older versions."""

    schema_version: int = SCHEMA_VERSION
    source: str
    source_fingerprint: str  # digest of the raw files' names and sizes; compared by a second call of packing
    source_times: str | None = None  # digest of their modification times, to notice one that was changed in place
    fingerprint: str  # digest of the shards; compared by a training run
    image_size: tuple[Count, Count]  # height, width
    splits: dict[Name, Split]
    label_maps_left_out: Count = 0
    rejected: tuple[RejectedFile, ...]
    blank: tuple[SliceName, ...] = ()  # slices of one grey value
    equal: tuple[tuple[SliceName, ...], ...] = ()  # groups of slices with the same pixels

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_description(uri: str) -> DataSetDescription:
    """`dataset.json` of the data set at `uri`.

    Raises FileNotFoundError, InvalidFile if it is damaged, and UserError if this program does not support its schema
    version or image size.
    """
    file = storage.join(uri, FILE)
    version = documents.read(file, _Versioned).schema_version
    if version != SCHEMA_VERSION:
        raise UserError(f"data set {uri} has schema version {version}, this program reads {SCHEMA_VERSION}: pack again")
    description = documents.read(file, DataSetDescription)
    height, width = description.image_size
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise UserError(
            f"data set {uri} has slices of {height} x {width} pixels, this program works with {IMAGE_SIZE} x "
            f"{IMAGE_SIZE}: pack slices of that size"
        )
    return description
