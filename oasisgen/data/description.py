"""`dataset.json`, the record of a data set that packing writes and every other job reads."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from oasisgen import documents, storage
from oasisgen.config.data import OASIS, Shape
from oasisgen.documents import Count, Finite, Name
from oasisgen.errors import UserError

FILE = "dataset.json"
SCHEMA_VERSION = 2
READABLE = 1, SCHEMA_VERSION
EXAMPLES = 3  # named for each reason


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


@dataclass(frozen=True)
class ByReason:
    """Files that were not used, or slices that were converted, for one reason."""

    reason: str
    count: Count
    examples: tuple[str, ...]

    def in_words(self, what: str) -> str:
        """One line, such as `5 not used, not an image: a.txt, b.txt, c.txt and 2 more`, for `what` "not used"."""
        more = self.count - len(self.examples)
        return f"{self.count} {what}, {self.reason}: {', '.join(self.examples)}{f' and {more} more' if more else ''}"


def by_reason(named: Iterable[tuple[str, str]]) -> tuple[ByReason, ...]:
    """How many names there are for each reason, with the first EXAMPLES of them. `named` are pairs (name, reason)."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in named:
        names[reason].append(name)
    return tuple(ByReason(reason, len(of), tuple(of[:EXAMPLES])) for reason, of in sorted(names.items()))


@dataclass(frozen=True)
class LabelClass:
    """A class of the label maps. Its number, which the maps hold, is its place in `label_classes`."""

    name: str
    value: Count  # its value in the source's label maps


@dataclass(frozen=True)
class Covariate:
    """A column of the data set that describes the scanned person."""

    name: Name
    kind: Literal["number", "text"]
    missing: Count  # cases without a value
    minimum: Finite | None = None  # of numbers
    maximum: Finite | None = None
    values: dict[str, Count] | None = None  # of texts: how many cases have each


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
    layout: str = "slices"  # what was recognised at `source`
    settings: dict[str, Any] = field(default_factory=dict)  # flags of packing that decide what the data set holds
    source_fingerprint: str  # digest of the raw files' names and sizes; compared by a second call of packing
    source_times: str | None = None  # digest of their modification times, to notice one that was changed in place
    fingerprint: str  # digest of the shards; compared by a training run
    image_size: tuple[Count, Count]  # height, width
    edges: dict[str, str] = field(default_factory=dict)  # edge of a slice -> side of the head; {}: unknown
    levels: Count = OASIS.levels  # number of levels: the highest level plus 1
    splits: dict[Name, Split]
    label_classes: tuple[LabelClass, ...] = ()  # empty: the data set has no label maps
    slices_without_labels: Count = 0  # of a data set with label maps
    covariates: tuple[Covariate, ...] = ()
    rejected: tuple[RejectedFile, ...]
    unused: tuple[ByReason, ...] = ()
    converted: tuple[ByReason, ...] = ()
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
    if version not in READABLE:
        reads = " and ".join(map(str, READABLE))
        raise UserError(f"data set {uri} has schema version {version}, this program reads {reads}: pack again")
    description = documents.read(file, DataSetDescription)
    try:
        Shape(*description.image_size, description.levels)
    except ValueError as fault:
        raise UserError(f"data set {uri} has slices of a size it cannot have ({fault}): pack others") from None
    return description
