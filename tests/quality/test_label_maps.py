import numpy as np
import pytest

from oasisgen.quality.label_maps import LabelMaps, RealLabelMaps, measure_labels, score_label_maps
from oasisgen.quality.measures import Score


def maps(count: int, area: float, fit: float) -> LabelMaps:
    """Label maps of one class with this area, of levels 0 and 1 in turn."""
    return LabelMaps(np.resize([0, 1], count), np.full((count, 1), area), np.full(count, fit))


def test_label_maps_are_scored_beside_those_of_training_slices() -> None:
    scores = score_label_maps(maps(8, 0.3, 0.5), [0, 1], RealLabelMaps(maps(40, 0.22, 0.8), maps(12, 0.2, 0.9)))
    assert list(scores) == ["tissue_area", "tissue_ks", "label_fit"]
    assert scores["tissue_area"].value == pytest.approx(0.5)
    assert scores["tissue_area"].reference == pytest.approx(0.1)
    assert scores["tissue_ks"] == Score(1.0, 1.0)
    assert scores["label_fit"].value == pytest.approx(0.5)
    assert scores["label_fit"].reference == pytest.approx(0.8)


def test_empty_maps_count_for_areas_alone_and_levels_without_real_maps_have_no_scores() -> None:
    real = RealLabelMaps(maps(8, 0.2, 0.8), maps(8, 0.2, 0.8))
    some = maps(8, 0.2, 0.7)
    some.fit[:4] = np.nan
    assert score_label_maps(some, [0, 1], real)["label_fit"].value == pytest.approx(0.7)
    some.fit[:] = np.nan
    assert list(score_label_maps(some, [0, 1], real)) == ["tissue_area", "tissue_ks"]
    assert score_label_maps(some._replace(levels=np.full(8, 5)), [5], real) == {}


def test_slices_and_maps_are_measured_row_by_row() -> None:
    labels = np.array([[[0, 1], [2, 2]], [[0, 0], [0, 0]]], np.uint8)
    measured = measure_labels(labels * 60, labels, np.array([3, 4]), 3)
    assert measured.areas.tolist() == [[0.25, 0.5], [0.0, 0.0]]
    assert measured.fit[0] == pytest.approx(1.0)
    assert np.isnan(measured.fit[1])
