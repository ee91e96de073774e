"""The classes of label maps: from the values in the source, as colors, and in words."""

from collections.abc import Collection, Sequence

import numpy as np

from oasisgen.data.description import LabelClass

COLORS = np.array(  # RGB of the classes from 1 on, repeated; class 0 is black, or transparent over a slice
    [(86, 180, 233), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66)], np.uint8
)
COLOR_NAMES = "blue", "orange", "green", "red", "pink", "yellow"


def unnamed_classes(values: Collection[int]) -> tuple[LabelClass, ...]:
    """The classes of label maps with these values, none of them named: those of a mask of 0 and 255, or one for every
    number up to the highest, at most 255; none without values, if no map could be read.
    """
    if not values:
        return ()
    if set(values) == {0, 255}:
        return LabelClass("background", 0), LabelClass("foreground", 255)
    numbers = range(min(255, max(values)) + 1)
    return tuple(LabelClass(f"class {value}" if value else "background", value) for value in numbers)


def classes_of(values: np.ndarray, classes: Sequence[LabelClass]) -> np.ndarray:
    """The class of each value of a label map, any shape, uint8. Raises ValueError for a value without a class."""
    if not classes:
        raise ValueError(
            "none of the label maps that were looked at can be used: name the classes with --label-classes"
        )
    known = np.array([of.value for of in classes])
    order = np.argsort(known)
    places = np.searchsorted(known[order], values).clip(0, len(known) - 1)
    if (strange := known[order][places] != values).any():
        raise ValueError(
            f"value {values[strange].flat[0]:g} of its label map has no class: name it with --label-classes"
        )
    return order[places].astype(np.uint8)


def palette(classes: int) -> np.ndarray:
    """The color of each class, (classes, 3) uint8 RGB; class 0 is black."""
    return np.concatenate([np.zeros((1, 3), np.uint8), np.resize(COLORS, (classes - 1, 3))])


def legend(names: Sequence[str]) -> str:
    """Which color each class but the first has, in words: `CSF blue, grey matter orange`."""
    return ", ".join(f"{name} {COLOR_NAMES[n % len(COLOR_NAMES)]}" for n, name in enumerate(names[1:]))
