"""Find degenerate slices: blank ones, and those with the same pixels as another slice."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from oasisgen.data.description import DataSetDescription, SliceName

BLANK = "blank"
SHOWN = 3  # slices, or groups of slices, listed in one line


def pixel_digest(image: np.ndarray) -> str:
    """The sha256 of the pixels of an image (H, W) uint8, or BLANK if all pixels have one value."""
    return BLANK if image.min() == image.max() else hashlib.sha256(image.tobytes()).hexdigest()


def find(digests: Iterable[tuple[SliceName, str]]) -> tuple[list[SliceName], list[list[SliceName]]]:
    """The blank slices, and the groups of slices with the same pixels, given the digest of each slice's pixels."""
    groups: dict[str, list[SliceName]] = defaultdict(list)
    for name, digest in sorted(digests):
        groups[digest].append(name)
    blank = groups.pop(BLANK, [])
    return blank, [group for group in groups.values() if len(group) > 1]


def lines(description: DataSetDescription) -> list[str]:
    """Lines for the user about blank slices and about slices with equal pixels: one for each kind that occurs."""
    found = []
    if blank := description.blank:
        found.append(f"blank slices: {len(blank)} ({_first(list(map(str, blank)))})")
    if groups := description.equal:
        equal = [" = ".join(map(str, group[:SHOWN])) + (" = ..." if len(group) > SHOWN else "") for group in groups]
        found.append(f"slices with the same pixels as another one: {sum(map(len, groups))} ({_first(equal)})")
    return found


def _first(texts: list[str]) -> str:
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
