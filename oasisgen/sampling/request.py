"""The request for a batch."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field

from oasisgen import documents
from oasisgen.config.generate import MOST_IDS, Format, GateConfig, Precision, Reject
from oasisgen.config.ranges import number_ranges
from oasisgen.data.description import LabelClass
from oasisgen.documents import Count, Seed
from oasisgen.sampling.ids import ids_of_levels

T = TypeVar("T")

ADDED_LATER: dict[str, Any] = {  # fields that batches of older versions lack
    "ids": None,
    "precision": "float32",
    "format": "png",
    "reject": "none",
    "part_size": 1000,
    "label_classes": (),
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
    data_fingerprint: str | None  # of the data set it is measured against; None: it is not measured
    inception: str | None  # digest of the weights whose features are used; None: the feature network of the model
    gate: GateConfig
    software: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As `config.json` has it, where a request without label maps does not name their classes."""
        fields = asdict(self) | {"levels": list(self.levels), "label_classes": list(map(asdict, self.label_classes))}
        if not self.label_classes:
            del fields["label_classes"]
        return fields

    def first_parts(self, of: int) -> Iterator[np.ndarray]:
        """The ids of each part, if no slice is rejected. The model has `of` levels."""
        if self.ids:
            ids = np.array(number_ranges("ids", self.ids, MOST_IDS))
            yield from (ids[first : first + self.part_size] for first in range(0, len(ids), self.part_size))
        else:
            yield from self.parts_between(of, 0, self.count)

    def parts_between(self, of: int, first: int, end: int) -> Iterator[np.ndarray]:
        """The ids of each part, from requested id number `first` to just before `end`. The model knows `of` levels."""
        for start in range(first, end, self.part_size):
            yield ids_of_levels(list(self.levels), of, start, min(start + self.part_size, end))


def read_with_request(uri: str, kind: type[T]) -> T:
    """A record of `kind` from a JSON file that has the fields of the record's `request` beside its other fields.

    Raises as `documents.read` does.
    """
    fields = documents.read(uri, dict)
    nested = fields | {"request": ADDED_LATER | fields}
    return documents.parse(json.dumps(nested).encode(), kind, uri)
