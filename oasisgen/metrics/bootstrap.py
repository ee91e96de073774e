"""Means with confidence intervals."""

from dataclasses import dataclass

import numpy as np

from oasisgen.documents import Finite

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: Finite
    low: Finite
    high: Finite


def mean_with_interval(values: np.ndarray, subjects: np.ndarray) -> Interval:
    """The mean over slices and its 95 % interval by bootstrap over subjects (Efron & Tibshirani 1993, chapter 13).

    `values` (N,), `subjects` (N,) name the subject of each. Slices of one person are alike, so resampling single slices
    would give too narrow an interval. The same data gives the same interval.
    """
    _, owner = np.unique(subjects, return_inverse=True)  # (N,)
    sums = np.bincount(owner, weights=values)  # (subjects,)
    sizes = np.bincount(owner)
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)  # (RESAMPLES,)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


def ratio_with_interval(values: np.ndarray, others: np.ndarray) -> Interval:
    """The mean of `values` over that of `others`, above 0, and its 95 % interval by bootstrap over subjects.

    Both are (S,), of the same subjects, who are resampled together. Resamples whose `others` are all 0 have no ratio,
    and do not count.
    """
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    drawn = drawn[others[drawn].sum(1) > 0]
    ratios = values[drawn].sum(1) / others[drawn].sum(1)  # (at most RESAMPLES,)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(float(values.sum() / others.sum()), float(low), float(high))
