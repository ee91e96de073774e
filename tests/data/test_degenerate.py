import json
from pathlib import Path

import numpy as np
import pytest

from oasisgen.config.pack import PackConfig
from oasisgen.data.degenerate import lines
from oasisgen.data.description import SliceName
from oasisgen.data.pack import pack
from oasisgen.data.phantom import subject
from oasisgen.data.slices import open_data_set
from tests.conftest import described, png, run_job


def test_pack_names_blank_slices_and_equal_pixels_within_and_across_splits(
    connected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    flags = ["--source", str(tmp_path / "raw"), "--out", str(tmp_path / "data")]
    done = run_job("pack", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    told = (
        "blank slices: 2 (test case 005 level 31; validate case 003 level 10)",
        "slices with the same pixels as another one: 4 (test case 005 level 9 = validate case 004 level 9; "
        "train case 001 level 9 = validate case 003 level 9)",
    )
    assert all(f"[    pack] {line}\n" in done.stdout for line in told), done.stdout
    pack(PackConfig(flags[1], flags[3], dry_run=True))
    said = capsys.readouterr().out
    assert all(f"[    plan] {line}\n" in said for line in told)

    written = json.loads((tmp_path / "data" / "dataset.json").read_text())
    blank = [(each["split"], each["case"], each["level"]) for each in written["blank"]]
    equal = [[(each["split"], each["case"], each["level"]) for each in group] for group in written["equal"]]
    assert blank == [("test", "005", 31), ("validate", "003", 10)]
    assert sorted(equal) == [
        [("test", "005", 9), ("validate", "004", 9)],
        [("train", "001", 9), ("validate", "003", 9)],
    ]
    data = open_data_set(str(tmp_path / "data"))
    assert data.degenerate_in("validate") == {("003", 9), ("003", 10), ("004", 9)}
    assert data.degenerate_in("train") == {("001", 9)}


def test_a_line_names_a_few_of_many() -> None:
    slices = tuple(SliceName("test", "001", level) for level in range(5))
    assert lines(described(blank=slices, equal=(slices,))) == [
        "blank slices: 5 (test case 001 level 0; test case 001 level 1; test case 001 level 2; and 2 more)",
        "slices with the same pixels as another one: 5 "
        "(test case 001 level 0 = test case 001 level 1 = test case 001 level 2 = ...)",
    ]
    assert lines(described()) == []
