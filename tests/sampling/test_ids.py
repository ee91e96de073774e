import numpy as np
import pytest

from oasisgen.config.generate import GenerateConfig
from oasisgen.sampling.ids import GROUP, groups, ids_of_levels, level_of


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
