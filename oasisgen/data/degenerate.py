"""Slices that say nothing about a person of their own: blank ones, and those with the pixels of another slice."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

BLANK = "blank"
SHOWN = 3  # slices, or groups of them, that a line names


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


def say_found(description: dict[str, Any]) -> list[str]:
    """What a user is told of a data set's blank slices and of those with equal pixels: a line each, if any."""
    lines = []
    if blank := [_words(each) for each in description.get("blank", [])]:
        lines.append(f"blank slices: {len(blank)} ({_first(blank)})")
    if groups := description.get("equal", []):
        equal = [" = ".join(map(_words, group[:SHOWN])) + (" = ..." if len(group) > SHOWN else "") for group in groups]
        lines.append(f"slices with the pixels of another one: {sum(map(len, groups))} ({_first(equal)})")
    return lines


def _words(named: dict[str, Any]) -> str:
    return f"{named['split']} case {named['case']} level {named['level']}"


def _first(texts: list[str]) -> str:
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
