"""How alike two label maps are: Dice, and the Hausdorff distance between the outlines of a class."""

from typing import NamedTuple

import numpy as np
import torch

PERCENTILE = 95  # of the distances between two outlines: the largest ones are those of single stray pixels


class Likeness(NamedTuple):
    """How alike pairs of label maps are, for each class but the first."""

    there: np.ndarray  # (B, K - 1) int64: pixels of the class in the true maps
    found: np.ndarray  # (B, K - 1) int64: in the others
    both: np.ndarray  # (B, K - 1) int64: in both, at the same place
    hausdorff95: np.ndarray  # (B, K - 1) pixels; NaN where one of the two maps lacks the class


def compare_label_maps(found: torch.Tensor, there: torch.Tensor, classes: int) -> Likeness:
    """Compare label maps `found` with the true ones `there`, both (B, H, W) uint8.

    The distance is the 95th percentile of the distances from each outline to the other, the larger of both directions.
    """
    each = torch.arange(1, classes, device=there.device, dtype=there.dtype).view(1, -1, 1, 1)
    is_there, is_found = there.unsqueeze(1) == each, found.unsqueeze(1) == each  # (B, K - 1, H, W)
    real, others, both = (pixels.sum((2, 3)).cpu().numpy() for pixels in (is_there, is_found, is_there & is_found))
    return Likeness(real, others, both, _hausdorff95(is_found, is_there, (real > 0) & (others > 0)))


def _hausdorff95(found: torch.Tensor, there: torch.Tensor, in_both: np.ndarray) -> np.ndarray:
    """`found` and `there` are (B, K - 1, H, W) bool, `in_both` (B, K - 1) bool."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance  # here: it takes seconds to import

    distances = np.full(in_both.shape, np.nan)
    if in_both.any():
        where = torch.from_numpy(in_both).to(found.device)
        pairs = found[where].unsqueeze(1), there[where].unsqueeze(1)  # (M, 1, H, W) each
        of_pairs = compute_hausdorff_distance(*pairs, include_background=True, percentile=PERCENTILE)  # (M, 1)
        distances[in_both] = of_pairs[:, 0].cpu().numpy()
    return distances


def dice_by_subject(there: np.ndarray, found: np.ndarray, both: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Dice of each subject over all its slices together, in the order of `np.unique(subjects)`: (S,).

    All arguments are (N,), the first three pixels. NaN for a subject of whom neither map has the class.
    """
    names, owner = np.unique(subjects, return_inverse=True)
    total, overlap = (np.bincount(owner, pixels, len(names)) for pixels in (there + found, both))
    dice: np.ndarray = np.divide(2 * overlap, total, out=np.full(len(names), np.nan), where=total > 0)
    return dice
