import tracemalloc

import numpy as np
import pytest

from oasisgen.config.data import OASIS
from oasisgen.config.generate import MOST_IDS, GenerateConfig
from oasisgen.config.ranges import disjoint_ranges
from oasisgen.pipelines.plan import plan_batch
from oasisgen.sampling.ids import GROUP, groups, ids_of_levels, ids_of_ranges, level_of, levels_of_ranges
from oasisgen.sampling.request import BatchRequest
from tests.conftest import requested


def test_ids_are_the_first_ones_of_the_levels() -> None:
    everything = np.arange(400)
    wanted = everything[np.isin(level_of(everything, 32), [3, 4, 31])]
    assert ids_of_levels([4, 3, 31], 32, 0, len(wanted)).tolist() == wanted.tolist()
    assert ids_of_levels([4, 3, 31], 32, 5, 9).tolist() == wanted[5:9].tolist()  # wherever a part begins
    assert ids_of_levels(list(range(32)), 32, 0, 400).tolist() == everything.tolist()


def test_every_id_sits_in_its_own_place() -> None:
    ids = np.array([3, 9, 19, 35, 1000, 1001])
    table = groups(ids)
    assert table.shape == (3, GROUP)  # 3, 19 and 35 want the same place
    assert sorted(table[table >= 0]) == ids.tolist()
    assert all(number % GROUP == place for row in table for place, number in enumerate(row) if number >= 0)
    assert len(groups(np.arange(1000))) == 63  # no more than are needed
    assert groups(np.array([], int)).shape == (0, GROUP)


def test_ids_and_a_count_of_levels_exclude_each_other() -> None:
    GenerateConfig("m", "o", ids="17,42")
    with pytest.raises(ValueError, match="ids is 17: must be without count, levels and reject"):
        GenerateConfig("m", "o", ids="17", levels="3-4")


def test_ids_of_ranges_are_those_of_the_list() -> None:
    text = "17,3-5,40-59,5-9,10,99-99"
    ranges = disjoint_ranges("ids", text, 100)
    everything = [3, 4, 5, 6, 7, 8, 9, 10, 17, *range(40, 60), 99]
    assert [number for numbers in ranges for number in numbers] == everything
    assert len(ranges) == 4  # those that touch are one
    for first in range(len(everything)):
        for end in range(first, len(everything) + 3):
            assert ids_of_ranges(ranges, first, end).tolist() == everything[first:end]
    assert levels_of_ranges(ranges, 32) == sorted({number % 32 for number in everything})
    assert levels_of_ranges(disjoint_ranges("ids", f"0-{MOST_IDS - 1}", MOST_IDS), 32) == list(range(32))


@pytest.mark.parametrize(
    "request_",
    [requested(count=10**9, part_size=7), requested(count=10**9, ids=f"5-{10**9 + 4}", part_size=7)],
)
def test_parts_of_a_billion_ids_are_planned_without_listing_them(request_: BatchRequest, tmp_path: object) -> None:
    tracemalloc.start()
    parts = request_.parts(0, 10**9)
    first, second = next(parts), next(parts)
    (last,) = request_.parts(10**9 - 3, 10**9, number=142857142)
    shift = 5 if request_.ids else 0
    for part, expected in ((first, range(7)), (second, range(7, 14)), (last, range(10**9 - 3, 10**9))):
        assert request_.ids_in(part, 32).tolist() == [number + shift for number in expected]
    lines = list(plan_batch(request_, OASIS, None, str(tmp_path), False, {"CPU": 2, "GPU": 0}))
    assert "1000000000 slices in 142857143 parts, 0 made, about 19005 GB" in lines
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
