import numpy as np
import pytest

from oasisgen.quality.label_maps import (
    LabelMaps,
    RealLabelMaps,
    in_halves,
    measure_labels,
    score_label_maps,
    spread,
)
from oasisgen.quality.measures import Score


def maps(count: int, area: float, fit: float) -> LabelMaps:
    """Label maps of one class with this area, of levels 0 and 1 in turn."""
    return LabelMaps(np.resize([0, 1], count), np.full((count, 1), area), np.full(count, fit))


def test_label_maps_are_compared_with_half_of_the_real_ones_beside_the_other_half() -> None:
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


def test_real_label_maps_are_cut_in_halves_by_subject() -> None:
    some = LabelMaps(np.arange(6), np.arange(6.0).reshape(6, 1), np.zeros(6))
    halves = in_halves(some, np.array(list("abcabd"), object), ["a", "d"])
    assert halves.first.levels.tolist() == [0, 3, 5]
    assert halves.second.areas.ravel().tolist() == [1, 2, 4]


def test_real_label_maps_are_those_of_all_cases_and_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"train": ["a", "b", "c"], "validate": ["d", "e"]}
    everything = spread(cases, 32)
    assert {split: len(some) for split, some in everything.items()} == {"train": 96, "validate": 64}
    monkeypatch.setattr("oasisgen.quality.label_maps.MOST", 20)  # of 160 in both halves
    some = spread(cases, 32)
    assert all(some[split] < everything[split] for split in cases)
    names = frozenset.union(*some.values())
    assert len(names) == 40
    assert {case for case, _ in names} == set("abcde")
    assert {level for _, level in names} == set(range(32))
