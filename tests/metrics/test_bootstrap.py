import numpy as np
import pytest

from oasisgen.metrics.bootstrap import Interval, mean_with_interval, ratio_with_interval


def test_the_interval_is_over_cases_not_slices() -> None:
    """40 cases of 32 equal slices: the interval must be that of 40 numbers, not of 1,280."""
    random = np.random.default_rng(0)
    per_case = random.normal(0.9, 0.02, 40)
    cases = np.repeat([f"{case:03d}" for case in range(40)], 32)
    result = mean_with_interval(np.repeat(per_case, 32), cases)
    assert result.mean == pytest.approx(per_case.mean())
    half = 1.96 * per_case.std() / np.sqrt(40)
    assert result.high - result.mean == pytest.approx(half, rel=0.1)
    assert result.mean - result.low == pytest.approx(half, rel=0.1)


def test_the_mean_is_over_slices_where_cases_differ_in_size() -> None:
    result = mean_with_interval(np.array([1.0, 0.0, 0.0, 0.0]), np.array(["a", "b", "b", "b"]))
    assert result.mean == 0.25
    assert (result.low, result.high) == (0.0, 1.0)


def test_one_case_has_no_spread() -> None:
    assert mean_with_interval(np.array([0.4, 0.6]), np.array(["a", "a"])) == Interval(0.5, 0.5, 0.5)


def test_a_ratio_is_resampled_by_subjects_of_both_together() -> None:
    others = np.random.default_rng(0).uniform(0.5, 1.0, 30)
    same = ratio_with_interval(0.9 * others, others)
    assert [same.mean, same.low, same.high] == pytest.approx([0.9, 0.9, 0.9])
    shuffled = ratio_with_interval(0.9 * others[::-1], others)
    assert shuffled.mean == pytest.approx(0.9)
    assert shuffled.high - shuffled.low > 0.02
