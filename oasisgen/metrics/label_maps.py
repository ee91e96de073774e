"""Label maps in numbers: how large each class is, and how well a map fits its slice."""

from collections.abc import Iterator

import numpy as np
from scipy.stats import ks_2samp


def class_areas(labels: np.ndarray, classes: int) -> np.ndarray:
    """The share of pixels that each class but the background has in label maps (N, H, W) uint8: (N, classes - 1)."""
    counts = [np.bincount(of.ravel(), minlength=classes) for of in labels]
    return np.array(counts, np.float64).reshape(-1, classes)[:, 1:] / max(1, labels[0].size if len(labels) else 1)


def label_fit(image: np.ndarray, labels: np.ndarray) -> float:
    """The share of the variance of a slice's grey values that its classes explain (the correlation ratio, eta squared).

    1 if each class has one grey value, 0 if all classes have the same mean. The background is left out. `image` and
    `labels` are (H, W) uint8. NaN where there is nothing to explain: the map is empty, or its pixels are of one value.
    """
    inside = labels > 0
    grey, classes = image[inside].astype(np.float64), labels[inside]
    total = float(grey.var() * grey.size) if grey.size else 0.0
    if not total:
        return float("nan")
    count = np.bincount(classes)
    means = np.bincount(classes, grey) / np.maximum(count, 1)
    return float((count * (means - grey.mean()) ** 2).sum() / total)


def area_scores(
    areas: np.ndarray, levels: np.ndarray, real_areas: np.ndarray, real_levels: np.ndarray
) -> dict[str, float]:
    """How far `areas` (N, K) of slices of `levels` (N,) are from real ones (M, K), level by level.

    `tissue_area`: the differences of the mean areas of all levels together, over the real areas; the mean over classes.
    `tissue_ks`: the Kolmogorov-Smirnov distance, the mean over levels and classes. Levels and classes that one side
    lacks count in neither. NaN if nothing is left.
    """
    differences, sizes, distances = [], [], []
    for ours, real in _by_level(areas, levels, real_areas, real_levels):
        differences.append(np.abs(ours.mean(0) - real.mean(0)))  # (K,)
        sizes.append(real.mean(0))  # (K,)
        there = np.flatnonzero(ours.any(0) | real.any(0))
        distances += [float(ks_2samp(ours[:, k], real[:, k]).statistic) for k in there]
    difference, size = np.sum(differences, 0), np.sum(sizes, 0)  # (K,)
    known = np.flatnonzero(size)
    if not known.size:
        return {"tissue_area": float("nan"), "tissue_ks": float("nan")}
    relative = np.atleast_1d(difference)[known] / np.atleast_1d(size)[known]
    return {"tissue_area": float(relative.mean()), "tissue_ks": float(np.mean(distances))}


def _by_level(
    areas: np.ndarray, levels: np.ndarray, real_areas: np.ndarray, real_levels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for level in np.intersect1d(levels, real_levels):
        yield areas[levels == level], real_areas[real_levels == level]
