"""Means that say how sure they are."""

import numpy as np

RESAMPLES = 10_000


def mean_with_interval(values: np.ndarray, cases: np.ndarray) -> dict[str, float]:
    """The mean over slices and its 95 % interval by bootstrap over cases (Efron & Tibshirani 1993, chapter 13).

    `values` (N,), `cases` (N,) name the case of each. Slices of one case are alike: resampling them one by one would
    promise too much. Returns `mean`, `low`, `high`; the same data gives the same interval.
    """
    _, owner = np.unique(cases, return_inverse=True)  # (N,)
    sums = np.bincount(owner, weights=values)  # (cases,)
    sizes = np.bincount(owner)
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)  # (RESAMPLES,)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}
