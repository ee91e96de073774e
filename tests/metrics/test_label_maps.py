import numpy as np
import pytest

from oasisgen.metrics.label_maps import area_scores, class_areas, label_fit

LEVELS = np.array([0, 0, 1, 1])
REAL = np.array([[0.1, 0.2], [0.3, 0.2], [0.4, 0.0], [0.4, 0.0]])  # of two classes; level 1 lacks the second


def test_areas_are_shares_of_all_pixels_and_leave_the_background_out() -> None:
    maps = np.array([[[0, 1], [2, 2]], [[0, 0], [0, 0]]], np.uint8)
    assert class_areas(maps, 4).tolist() == [[0.25, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert class_areas(maps[:0], 4).shape == (0, 3)


def test_equal_areas_have_no_distance() -> None:
    assert area_scores(REAL, LEVELS, REAL, LEVELS) == {"tissue_area": 0.0, "tissue_ks": 0.0}


def test_the_difference_of_areas_is_a_share_of_the_real_area() -> None:
    scores = area_scores(REAL * [1.5, 1.0], LEVELS, REAL, LEVELS)
    assert scores["tissue_area"] == pytest.approx(0.25)  # 0.5 of one class, 0 of the other
    # Level 0: 0.15 and 0.45 beside 0.1 and 0.3; level 1: all larger; the second class differs nowhere.
    assert scores["tissue_ks"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)


def test_swapped_classes_and_swapped_levels_are_seen() -> None:
    assert area_scores(REAL[:, ::-1], LEVELS, REAL, LEVELS)["tissue_area"] > 0.5
    assert area_scores(REAL, 1 - LEVELS, REAL, LEVELS)["tissue_area"] > 0.5


def test_levels_that_one_side_lacks_do_not_count() -> None:
    assert area_scores(REAL[:2], LEVELS[:2], REAL, LEVELS) == {"tissue_area": 0.0, "tissue_ks": 0.0}
    assert all(np.isnan(score) for score in area_scores(REAL, LEVELS, REAL, LEVELS + 2).values())
    assert all(np.isnan(score) for score in area_scores(REAL * 0, LEVELS, REAL * 0, LEVELS).values())


def test_a_map_fits_if_each_class_has_its_own_grey_value() -> None:
    labels = np.array([[0, 0, 1, 1], [2, 2, 3, 3]], np.uint8)
    image = np.array([0, 50, 100, 200], np.uint8)[labels]
    assert label_fit(image, labels) == pytest.approx(1.0)
    image[0, :2] = 9, 90  # the background is left out
    assert label_fit(image, labels) == pytest.approx(1.0)
    assert label_fit(image, np.roll(labels, 1, 1)) < 0.7
    assert label_fit(np.array([[10, 20], [10, 20]], np.uint8), np.array([[1, 1], [2, 2]], np.uint8)) == 0.0


def test_an_empty_map_and_a_blank_slice_have_no_fit() -> None:
    some = np.array([[1, 2]], np.uint8)
    assert np.isnan(label_fit(some, some * 0))
    assert np.isnan(label_fit(some * 0, some))
