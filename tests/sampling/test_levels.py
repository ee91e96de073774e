import pytest

from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.sampling.batch import require_levels


def test_levels_that_the_data_set_lacks_are_refused_with_those_it_has() -> None:
    splits = {"train": {"levels": [8, 9, 10, 12]}, "validate": {"levels": [8, 9, 10, 11]}}
    data = DataSet("root/datasets/some", "fingerprint", splits)
    require_levels([8, 9, 10], data)
    for wanted, lacking in (([0, 1, 2], "0-2"), ([8, 9, 11, 12], "11-12")):
        with pytest.raises(UserError, match=f"has no slices of level {lacking} to compare with: give --levels 8-10"):
            require_levels(wanted, data)
    require_levels([0, 31], DataSet("old", "fingerprint", {"train": {}, "validate": {}}))
