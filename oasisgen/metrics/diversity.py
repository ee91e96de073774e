"""Whether slices of one level differ from each other as much as those of different people do."""

import numpy as np
import torch

from oasisgen.metrics.ssim import ms_ssim

PAIRS = 512


def pairs_of_a_level(levels: np.ndarray, subjects: np.ndarray | None, count: int, seed: int) -> np.ndarray:
    """Up to `count` different pairs of rows (P, 2), each of one level and, where `subjects` are given, of two subjects.

    All levels contribute equally, as far as they have enough pairs. `levels` (N,), `subjects` (N,).
    """
    random = np.random.default_rng(seed)
    names = np.unique(levels)
    chosen = []
    for level in names:
        first, second = np.triu_indices(int((levels == level).sum()), 1)
        rows = np.flatnonzero(levels == level)
        pairs = np.stack([rows[first], rows[second]], 1)  # (P, 2)
        if subjects is not None:
            pairs = pairs[subjects[pairs[:, 0]] != subjects[pairs[:, 1]]]
        chosen.append(random.permutation(pairs)[: -(-count // len(names))])
    return np.concatenate(chosen)


def variety(images: np.ndarray, levels: np.ndarray, subjects: np.ndarray | None = None, seed: int = 0) -> float:
    """Mean MS-SSIM over pairs of slices (N, H, W) uint8 of one level: the higher, the more alike they are.

    NaN if no level has two slices.
    """
    pairs = pairs_of_a_level(levels, subjects, PAIRS, seed)
    scores = [
        ms_ssim(torch.from_numpy(images[chunk[:, 0]]), torch.from_numpy(images[chunk[:, 1]]))
        for chunk in np.array_split(pairs, max(1, len(pairs) // 16))
        if len(chunk)
    ]
    return float(torch.cat(scores).mean()) if scores else float("nan")
