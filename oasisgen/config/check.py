"""Checks of settings: a value outside its range raises ValueError with one clear line."""

import math
from typing import Any


def check(name: str, value: Any, ok: bool, allowed: str) -> None:
    """Raise ValueError(`name` is `value`: must be `allowed`) unless `ok`."""
    if not ok:
        raise ValueError(f"{name} is {value}: must be {allowed}")


def check_least(settings: Any, group: str, least: int, *names: str) -> None:
    """Raise ValueError for the first of the named fields of `settings` that is below `least`."""
    for name in names:
        check(f"{group}.{name}", getattr(settings, name), getattr(settings, name) >= least, f"at least {least}")


def check_finite(settings: Any, group: str = "") -> None:
    """Raise ValueError for the first field of `settings` that is infinite or NaN."""
    for name, value in vars(settings).items():
        if isinstance(value, float):
            check(group + name, value, math.isfinite(value), "a finite number")
