"""The values of a label map as classes."""

from collections.abc import Sequence

import numpy as np

from oasisgen.data.description import LabelClass


def classes_of(values: np.ndarray, classes: Sequence[LabelClass]) -> np.ndarray:
    """The class of each value of a label map, any shape, uint8. Raises ValueError for a value without a class."""
    known = np.array([of.value for of in classes])
    order = np.argsort(known)
    places = np.searchsorted(known[order], values).clip(0, len(known) - 1)
    if (strange := known[order][places] != values).any():
        raise ValueError(
            f"value {values[strange].flat[0]:g} of its label map has no class: name it with --label-classes"
        )
    return order[places].astype(np.uint8)
