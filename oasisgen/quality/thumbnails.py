"""Search slices by their thumbnails: the nearest of many real slices, exactly, though most are compared only in part.

A thumbnail is rotated so that its first coordinates say most about it. The distance in a few of them is at most the
distance of the thumbnails. So the search compares all slices in a few coordinates, those that are near enough in more,
and whole thumbnails only of what is left.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from oasisgen.data.feed import chunks

THUMBNAIL = 32  # pixels of the longer side
FOREGROUND = 16  # the least grey value that counts for a slice's centre: decoders write black as 0 to 3

COARSE, FINE = 48, 256  # numbers of a short vector: two more than coordinates
FIRST = 16  # the nearest short vectors: their thumbnails say how far the search has to go
AT_ONCE = 1024  # thumbnails that are compared at once
ROUNDING = 3e-5  # the most that a squared distance in float32 is off, as a share of the squared lengths


def centre(image: np.ndarray) -> tuple[float, float]:
    """(H, W) uint8 -> the mean row and column of what is not black; the middle if all is."""
    moments = cv2.moments(cv2.threshold(image, FOREGROUND - 1, 1, cv2.THRESH_BINARY)[1])
    if not moments["m00"]:
        return (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
    return moments["m01"] / moments["m00"], moments["m10"] / moments["m00"]


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """(H, W) -> its content shifted; pixels that enter are black."""
    H, W = image.shape
    out = np.zeros_like(image)
    target, source = (
        (slice(max(sign * down, 0), H + min(sign * down, 0)), slice(max(sign * right, 0), W + min(sign * right, 0)))
        for sign in (1, -1)
    )
    out[target] = image[source]
    return out


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> (T,) float32, block means; T is 1024 for square slices."""
    height, width = thumbnail_size(image.shape)
    small: np.ndarray = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return small.ravel()  # (T,)


def thumbnail_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width of the thumbnail of a slice of `size` (H, W)."""
    height, width = (max(1, round(THUMBNAIL * side / max(size))) for side in size)
    return height, width


def centred(image: np.ndarray) -> np.ndarray:
    """(H, W) uint8, its content shifted so that its centre is in the middle."""
    down, right = centre(image)
    return shifted(image, round((image.shape[0] - 1) / 2 - down), round((image.shape[1] - 1) / 2 - right))


class Window(NamedTuple):
    """Some consecutive places of a block, whose slices are ordered by level, then by row."""

    first: int
    wanted: np.ndarray  # (M,) bool: which of the places from `first` on are searched
    levels: np.ndarray  # (M,)
    rows: np.ndarray  # (M,)


class Nearest(NamedTuple):
    """The pairs of a slice and a probe with the least distances, ordered by distance, level, row and probe."""

    distances: np.ndarray  # (K,) float64, squared
    keys: np.ndarray  # (K, 3): level, row and the number of the probe

    def merge(self, others: "Nearest", count: int) -> "Nearest":
        """The `count` nearest of both."""
        distances, keys = (np.concatenate(both) for both in zip(self, others, strict=True))
        order = np.lexsort((*keys.T[::-1], distances))[:count]
        return Nearest(distances[order], keys[order])


NONE = Nearest(np.empty(0), np.empty((0, 3), np.int64))


class Thumbnails(NamedTuple):
    """Those of N slices, as `thumbnails` prepares them; in a block, by place."""

    pixels: np.ndarray  # (N, T) float32
    longest: float  # squared length, at most
    coarse: np.ndarray  # (COARSE, N) float32: short vectors, as columns, for fast products with all of them
    fine: np.ndarray  # (N, FINE) float32: longer ones, as rows, of which some are looked up

    def nearest(self, probes: "Thumbnails", window: Window, count: int, found: Nearest = NONE) -> Nearest:
        """The `count` nearest pairs of a slice of the window and one of P `probes`, and of those `found`.

        The result is the same as if all thumbnails were compared. The probes are rotated as these thumbnails are.
        """
        if not window.wanted.any():
            return found
        M, slack = len(window.wanted), ROUNDING * (self.longest + probes.longest)
        coarse = self.coarse[:, window.first : window.first + M]
        bounds = np.stack([probe @ coarse for probe in weights(probes.coarse.T)])  # (P, M)
        bounds[:, ~window.wanted] = np.inf
        bounds = bounds.ravel()  # of pairs; the number of a pair: M x its probe + its place in the window
        if len(found.distances) < count:  # how near must a pair be?
            first = _lowest(bounds, max(FIRST, count))
            found = found.merge(self._compare(probes.pixels, window, first), count)
            bounds[first] = np.inf
        limit = found.distances[-1] + slack if len(found.distances) == count else np.finfo(np.float32).max
        pairs = np.flatnonzero(bounds <= float(limit))
        probe, place = np.divmod(pairs, M)
        bounds = self.fine[window.first + place] @ weights(probes.fine).T  # (pairs, P)
        pairs = pairs[bounds[np.arange(len(pairs)), probe] <= float(limit)]
        for some in chunks(pairs, AT_ONCE):
            found = found.merge(self._compare(probes.pixels, window, some), count)
        return found

    def _compare(self, probes: np.ndarray, window: Window, pairs: np.ndarray) -> Nearest:
        """The distances of some pairs, in no order."""
        probe, place = np.divmod(pairs, len(window.wanted))
        differences = self.pixels[window.first + place].astype(np.float64) - probes[probe]  # (pairs, T)
        keys = np.stack([window.levels[place], window.rows[place], probe], 1)
        return Nearest(np.square(differences, out=differences).sum(1), keys)


def rotation(sample: np.ndarray) -> np.ndarray:
    """(N, T) float32 -> (D, T) float32, orthonormal: the principal directions of a sample of thumbnails (uncentred)."""
    rows: np.ndarray = np.linalg.svd(sample.astype(np.float64), full_matrices=False)[2]
    return rows[: FINE - 2].astype(np.float32)


def thumbnails(pixels: np.ndarray, rotation: np.ndarray) -> Thumbnails:
    """Prepare (N, T) float32 for searches. A short vector: the first coordinates x after a `rotation`, |x|², and 1."""
    coordinates = pixels @ rotation.T  # (N, D)
    coarse, fine = (_short(coordinates[:, : size - 2]) for size in (COARSE, FINE))
    return Thumbnails(pixels, float(np.square(pixels).sum(1).max()), np.ascontiguousarray(coarse.T), fine)


def weights(vectors: np.ndarray) -> np.ndarray:
    """Of short vectors, (P, S). Products with others are squared distances: (-2y, 1, |y|²) · (x, |x|², 1)."""
    return np.column_stack([-2 * vectors[:, :-2], vectors[:, -1], vectors[:, -2]])


def _short(coordinates: np.ndarray) -> np.ndarray:
    """(N, D) -> short vectors, (N, D + 2): x, |x|², 1."""
    ones = np.ones(len(coordinates), np.float32)
    return np.column_stack([coordinates, np.square(coordinates).sum(1), ones])


def _lowest(bounds: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the `count` lowest of finite bounds (N,), in no order."""
    some = np.argpartition(bounds, count)[:count] if len(bounds) > count else np.arange(len(bounds))
    return some[np.isfinite(bounds[some])]
