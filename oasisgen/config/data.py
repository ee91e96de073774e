"""The shape of the data: pixels of a slice, codes of a code map, levels of a case."""

import math
from dataclasses import dataclass

from oasisgen.config.check import check

PIXELS_PER_CODE = 4  # along each axis: the encoder halves the slice twice
SIDE_STEP = 32  # pixels; the feature network halves a slice five times, which gives regions of this side
LEAST_SIDE, MOST_SIDE = 64, 512  # pixels
MOST_LEVELS = 512


@dataclass(frozen=True)
class Shape:
    """The size of the slices of a data set, and the number of its levels. Raises ValueError for one out of range."""

    height: int
    """Pixels: a multiple of 32 from 64 to 512."""
    width: int
    """As the height."""
    levels: int
    """Levels of a case, from 1 to 512: the highest one plus 1."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            side = getattr(self, name)
            fits = side % SIDE_STEP == 0 and LEAST_SIDE <= side <= MOST_SIDE
            check(name, side, fits, f"a multiple of {SIDE_STEP} from {LEAST_SIDE} to {MOST_SIDE}")
        check("levels", self.levels, 1 <= self.levels <= MOST_LEVELS, f"from 1 to {MOST_LEVELS}")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a slice in pixels."""
        return self.height, self.width

    @property
    def code_size(self) -> tuple[int, int]:
        """Height and width of a code map in codes."""
        return self.height // PIXELS_PER_CODE, self.width // PIXELS_PER_CODE

    @property
    def codes(self) -> int:
        """Codes of a code map."""
        return math.prod(self.code_size)

    def __str__(self) -> str:
        return f"{self.levels} {'level' if self.levels == 1 else 'levels'} of {self.height} x {self.width} pixels"


OASIS = Shape(256, 256, 32)  # levels from the mid-brain (0) to above the ventricles (31)
