import json
from pathlib import Path

import numpy as np

from oasisgen.data.pack import pack
from oasisgen.data.phantom import subject
from oasisgen.data.slices import open_data_set
from tests.conftest import png


def test_pack_names_blank_slices_and_equal_pixels_within_and_across_splits(connected: str, tmp_path: Path) -> None:
    first, second = subject(0, 1), subject(0, 2)
    raw = {
        "train": {("001", 9): first[9], ("001", 10): first[10], ("002", 9): second[9]},
        "validate": {("003", 9): first[9], ("003", 10): first[10] * 0 + 7, ("004", 9): second[11]},
        "test": {("005", 9): second[11], ("005", 31): first[10] * 0},
    }
    for split, slices in raw.items():
        (tmp_path / "raw" / split).mkdir(parents=True)
        for (case, level), image in slices.items():
            (tmp_path / "raw" / split / f"case_{case}_slice_{level}.nii.png").write_bytes(png(image.astype(np.uint8)))
    pack(str(tmp_path / "raw"), str(tmp_path / "data"))

    described = json.loads((tmp_path / "data" / "dataset.json").read_text())
    blank = [(each["split"], each["case"], each["level"]) for each in described["blank"]]
    equal = [[(each["split"], each["case"], each["level"]) for each in group] for group in described["equal"]]
    assert blank == [("test", "005", 31), ("validate", "003", 10)]
    assert sorted(equal) == [
        [("test", "005", 9), ("validate", "004", 9)],
        [("train", "001", 9), ("validate", "003", 9)],
    ]
    data = open_data_set(str(tmp_path / "data"))
    assert data.degenerate_in("validate") == {("003", 9), ("003", 10), ("004", 9)}
    assert data.degenerate_in("train") == {("001", 9)}
