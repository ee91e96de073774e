"""Lists of numbers as users write them: `10-20,25`."""

import re
from functools import lru_cache


@lru_cache
def disjoint_ranges(name: str, text: str, end: int) -> tuple[range, ...]:
    """`25,10-20` -> (range(10, 21), range(25, 26)), ascending. Raises ValueError unless all numbers are below `end`."""
    pieces = []
    for words in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", words)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < end:
            raise ValueError(f"{name} is {text}: must be like 10-20,25, within 0-{end - 1}")
        pieces.append(range(first, last + 1))
    merged: list[range] = []
    for piece in sorted(pieces, key=lambda one: one.start):
        if merged and piece.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, piece.stop))
        else:
            merged.append(piece)
    return tuple(merged)


def number_ranges(name: str, text: str, end: int) -> list[int]:
    """`10-20,25` -> [10, …, 20, 25], ascending. Raises as `disjoint_ranges`."""
    return [number for numbers in disjoint_ranges(name, text, end) for number in numbers]


def in_ranges(numbers: list[int]) -> str:
    """[10, 11, 12, 25] -> `10-12,25`, the inverse of `number_ranges`. `numbers` must be ascending."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
