import numpy as np
import pytest
import torch

from oasisgen.metrics.segmentation import compare_label_maps, dice_by_subject


def test_pixels_and_distances_are_those_of_each_class_and_a_class_that_one_map_lacks_has_no_distance() -> None:
    there = torch.zeros(2, 32, 32, dtype=torch.uint8)
    there[0, 4:12, 4:12] = 1
    there[1, 4:12, 4:12] = 2
    found = there.roll(3, 2)  # 3 pixels to the right
    found[1] = 0
    alike = compare_label_maps(found, there, 4)
    assert alike.there.tolist() == [[64, 0, 0], [0, 64, 0]]
    assert alike.found.tolist() == [[64, 0, 0], [0, 0, 0]]
    assert alike.both.tolist() == [[40, 0, 0], [0, 0, 0]]
    assert alike.hausdorff95[0, 0] == pytest.approx(3)
    assert np.isfinite(alike.hausdorff95).sum() == 1
    same = compare_label_maps(there, there, 3)
    assert same.hausdorff95[[0, 1], [0, 1]].tolist() == [0, 0]
    assert np.isnan(compare_label_maps(found[1:], there[:1], 2).hausdorff95).all()


def test_dice_is_of_all_slices_of_a_subject_together() -> None:
    there, found, both = np.array([10, 0, 90, 0]), np.array([10, 20, 70, 0]), np.array([10, 0, 60, 0])
    dice = dice_by_subject(there, found, both, np.array(["b", "b", "a", "c"]))
    assert dice[:2].tolist() == pytest.approx([2 * 60 / 160, 2 * 10 / 40])
    assert np.isnan(dice[2])
