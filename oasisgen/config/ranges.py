"""Lists of numbers as users write them: `10-20,25`."""

import re

MOST_AT_ONCE = 10**6  # numbers in one range


def number_ranges(name: str, text: str, end: int) -> list[int]:
    """`10-20,25` -> [10, …, 20, 25], ascending. Raises ValueError unless it is a list of numbers below `end`."""
    numbers: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not (first <= last < end and last - first < MOST_AT_ONCE):
            raise ValueError(f"{name} is {text}: must be like 10-20,25, within 0-{end - 1}")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def in_ranges(numbers: list[int]) -> str:
    """[10, 11, 12, 25] -> `10-12,25`, the inverse of `number_ranges`. `numbers` must be ascending."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
