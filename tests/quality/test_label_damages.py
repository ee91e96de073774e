"""The damaged label maps of `make instruments` are damaged as they say."""

import numpy as np
import pytest

from benchmarks.label_damages import damages, intact, scores_of_cuts
from oasisgen.quality.label_maps import measure_labels

CLASSES = "background", "CSF", "grey matter", "white matter"


def heads() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slices and label maps (12, 128, 128), and levels 0 and 1, of discs: a ventricle, white matter, grey matter, and
    CSF around. All heads are alike, but do not lie in the same place.
    """
    y, x = np.mgrid[:128, :128] - 64
    radius, labels = np.hypot(y, x), np.zeros((12, 128, 128), np.uint8)
    for n, each in enumerate(labels):
        for label, within in ((1, 60), (2, 55), (3, 45), (1, 8 + n % 2)):
            each[np.roll(radius, n - 6, 1) < within] = label
    return labels * 60, labels, np.resize([0, 1], 12)


@pytest.mark.parametrize("place", range(5))
def test_each_damage_is_seen_by_what_must_see_it_and_leaves_the_original_unchanged(place: int) -> None:
    images, labels, levels = heads()
    _, damage, expected = damages(CLASSES)[place]
    changed = damage(images, labels, levels)
    assert np.array_equal(images, labels * 60)
    maps = [measure_labels(*pair, levels, 4) for pair in (intact(images, labels, levels), changed)]
    clean, damaged = scores_of_cuts(maps, np.repeat(list("abcdef"), 2), 8)
    for name, way in (expected or {"tissue_area": 1}).items():
        assert np.mean([after[name] - before[name] for after, before in zip(damaged, clean, strict=True)]) * way > 0.005


def test_ventricles_grow_by_their_share_in_slice_and_map_and_other_csf_does_not() -> None:
    images, labels, levels = heads()
    _, enlarge, _ = damages(CLASSES)[3]
    larger, maps = enlarge(images, labels, levels)
    before, after = (labels == 1).sum((1, 2)), (maps == 1).sum((1, 2))
    ventricles = (labels[:, 34:94, 34:94] == 1).sum((1, 2))
    assert np.allclose((after - before) / ventricles, 0.2, atol=0.01)
    assert np.array_equal(larger, maps * 60)
    assert np.array_equal(maps != labels, (labels == 3) & (maps == 1))
