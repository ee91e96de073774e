import numpy as np

from oasisgen.data.feed import Feed
from oasisgen.quality.batch import equal_sets
from oasisgen.quality.sets import Slices, select_levels


def feed(cases: int, levels: range) -> Feed:
    """A tiny image per case and level."""
    columns = [(f"{case:03d}", level) for case in range(cases) for level in levels]
    return Feed(
        [
            {
                "case": np.array([case for case, _ in columns], object),
                "subject": np.array([case for case, _ in columns], object),
                "level": np.array([level for _, level in columns]),
                "image": np.zeros((len(columns), 4, 4), np.uint8),
            }
        ]
    )


def test_the_reference_is_chosen_without_slices_that_are_blank_or_lie_in_another_split() -> None:
    everything = feed(3, range(2))
    rest = select_levels(everything, np.resize([0, 1], 6), {("001", 0), ("001", 1), ("002", 0)})
    assert rest.subjects is not None
    assert sorted(zip(rest.subjects, rest.levels.tolist(), strict=True)) == [("000", 0), ("000", 1), ("002", 1)]
    assert len(select_levels(everything, np.resize([0, 1], 6)).levels) == 6


def test_fidelity_is_measured_on_as_many_synthetic_slices_as_there_are_real_ones() -> None:
    train, held_out = feed(20, range(8)), feed(5, range(8))
    synthetic = Slices(np.zeros((320, 4, 4), np.uint8), np.resize(np.arange(8), 320))
    assert [len(slices.levels) for slices in equal_sets(synthetic, list(range(8)), train, held_out)] == [40, 40, 40]
    few = Slices(synthetic.images[:16], synthetic.levels[:16])
    sets = equal_sets(few, list(range(8)), train, held_out)
    assert [len(slices.levels) for slices in sets] == [16, 16, 16]
    assert [np.bincount(slices.levels).tolist() for slices in sets] == [[2] * 8] * 3
    some = equal_sets(synthetic, [2, 3], train, held_out)
    assert [np.unique(slices.levels).tolist() for slices in some[1:]] == [[2, 3], [2, 3]]
    assert len(some.synthetic.levels) == len(some.real.levels) == 10
