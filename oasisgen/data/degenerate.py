"""Slices that say nothing about a person of their own: blank ones, and those with the pixels of another slice."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

BLANK = "blank"


class Named(NamedTuple):
    """A slice of a data set."""

    split: str
    case: str
    level: int


def pixel_digest(image: np.ndarray) -> str:
    """What equal pixels share: the sha256 of (H, W) uint8, or BLANK if all of them have one value."""
    return BLANK if image.min() == image.max() else hashlib.sha256(image.tobytes()).hexdigest()


def find(digests: Iterable[tuple[Named, str]]) -> dict[str, Any]:
    """The slices that are `blank`, and groups of slices with `equal` pixels, as `dataset.json` names them."""
    groups: dict[str, list[Named]] = defaultdict(list)
    for named, digest in sorted(digests):
        groups[digest].append(named)
    blank = groups.pop(BLANK, [])
    return {
        "blank": [named._asdict() for named in blank],
        "equal": [[named._asdict() for named in group] for group in groups.values() if len(group) > 1],
    }


def names(description: dict[str, Any]) -> frozenset[Named]:
    """All slices that a data set's description names as blank or equal; none if it was packed before it named them."""
    groups = [description.get("blank", []), *description.get("equal", [])]
    return frozenset(Named(each["split"], each["case"], int(each["level"])) for group in groups for each in group)
