"""The request for a batch."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from oasisgen import documents
from oasisgen.config.generate import MOST_IDS, Format, GateConfig, Precision, Reject
from oasisgen.config.ranges import disjoint_ranges
from oasisgen.data.description import LabelClass
from oasisgen.documents import Count, Seed
from oasisgen.sampling.ids import ids_of_levels, ids_of_ranges

T = TypeVar("T")

ADDED_LATER: dict[str, Any] = {  # fields that batches of older versions lack
    "ids": None,
    "precision": "float32",
    "format": "png",
    "reject": "none",
    "part_size": 1000,
    "label_classes": (),
    "label_subjects": 0,
    "data_fingerprint": None,
    "inception": None,
    "gate": {},
    "software": {},
}


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """Everything that determines the slices and the verdict of a batch: its `config.json`."""

    model: str  # digest
    base_seed: Seed
    count: Count
    levels: tuple[Count, ...]
    ids: str | None  # as --ids gives them; None: the first `count` ids of the levels
    precision: Precision
    format: Format
    reject: Reject
    part_size: Annotated[int, Field(ge=1)]
    label_classes: tuple[LabelClass, ...] = ()  # of the label maps, whose pixels are places here; empty: no label maps
    label_subjects: Count = 0  # whose label maps the label decoder has learned from; 0: all of its data set
    data_fingerprint: str | None  # of the data set it is measured against; None: it is not measured
    inception: str | None  # digest of the weights whose features are used; None: the feature network of the model
    gate: GateConfig
    software: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As `config.json` has it, where a request without label maps does not name their classes, and one of all
        subjects' labels, or without a least utility, does not say so: those of older versions do not either.
        """
        fields = asdict(self) | {"levels": list(self.levels), "label_classes": list(map(asdict, self.label_classes))}
        if not self.label_classes:
            del fields["label_classes"]
        if not self.label_subjects:
            del fields["label_subjects"]
        if not self.gate.utility:
            del fields["gate"]["utility"]
        return fields

    def parts(self, first: int, end: int, number: int = 0) -> Iterator["PlannedPart"]:
        """The parts with the requested ids from the one in place `first` to just before `end`, numbered from `number`.

        None of them lists its ids: a batch may have 10^10.
        """
        for start in range(first, end, self.part_size):
            yield PlannedPart(number, start, min(start + self.part_size, end))
            number += 1

    def ids_in(self, part: "PlannedPart", of: int) -> np.ndarray:
        """The ids of a part, ascending: (part.size,) int64. The model has `of` levels."""
        if self.ids:
            return ids_of_ranges(disjoint_ranges("ids", self.ids, MOST_IDS), part.first, part.end)
        return ids_of_levels(list(self.levels), of, part.first, part.end)


class PlannedPart(NamedTuple):
    """A part of a batch before it is made: the places of its first and last id among the requested ones."""

    number: int
    first: int
    end: int  # just behind the last

    @property
    def size(self) -> int:
        """How many ids it has."""
        return self.end - self.first


def read_with_request(uri: str, kind: type[T]) -> T:
    """A record of `kind` from a JSON file that has the fields of the record's `request` beside its other fields.

    Raises as `documents.read` does.
    """
    fields = documents.read(uri, dict)
    nested = fields | {"request": ADDED_LATER | fields}
    return documents.parse(json.dumps(nested).encode(), kind, uri)
