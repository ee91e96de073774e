import numpy as np
import pyarrow as pa
import pytest

from oasisgen.data.pairs import Labelled, PairColumns, few_of
from oasisgen.errors import UserError


def test_only_the_wanted_slices_are_read_each_with_its_label_map() -> None:
    table = pa.table(
        {
            "case": ["a", "a", "b"],
            "level": pa.array([1, 2, 1], pa.int16()),
            "subject": ["s", "s", "t"],
            "image": [bytes([grey] * 6) for grey in (10, 20, 30)],
            "labels": [bytes([1] * 6), None, bytes([3] * 6)],
        }
    )
    names = Labelled(np.array(["a", "b"], object), np.array([1, 1]), np.array(["s", "t"], object))
    columns = PairColumns("image", np.uint8, (2, 3), ("case", "level", "subject", "labels"), names.names(np.array([1])))
    read = columns.decode(table)
    assert read["case"].tolist() == ["b"]
    assert read["image"].tolist() == [[[30] * 3] * 2]
    assert read["labels"].tolist() == [[[3] * 3] * 2]
    assert columns.decode(table.slice(0, 2))["labels"].shape == (0, 2, 3)
    everything = PairColumns("image", np.uint8, (2, 3), columns.others, {("a", 1), ("a", 2), ("b", 1)}).decode(table)
    assert everything["case"].tolist() == ["a", "b"]  # one has no label map
    assert len(everything["image"]) == len(everything["labels"]) == 2


def test_few_labels_are_those_of_whole_subjects_whoever_else_there_is() -> None:
    subjects = np.repeat(np.array([f"s{n}" for n in range(20)], object), 5)
    four, five = (set(subjects[few_of(subjects, count, "subjects")]) for count in (4, 5))
    assert (len(four), len(five)) == (4, 5)
    assert four < five
    assert len(few_of(subjects, 4, "subjects")) == 4 * 5
    others = np.concatenate([subjects[::-1], np.array(["t"] * 3, object)])
    assert len(set(others[few_of(others, 5, "subjects")]) & five) >= 4  # at most one made way for a new name
    with pytest.raises(
        UserError, match=r"^labels\.subjects is 20: .* label maps of 20 subjects; it must be below that"
    ):
        few_of(subjects, 20, "labels.subjects")
