import numpy as np
import pyarrow as pa

from oasisgen.data.pairs import Labelled, PairColumns


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
