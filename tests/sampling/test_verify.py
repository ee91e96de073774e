from pathlib import Path

import pytest

from oasisgen import disk, storage
from oasisgen.errors import UserError
from oasisgen.sampling.manifest import read_finished
from oasisgen.sampling.verify import _stored_files, digests_of


def test_names_have_the_same_digests_in_any_order_and_pieces() -> None:
    names = [f"slices/{number // 4}/{number}.png" for number in range(10)] + ["summary/part-0.parquet"]
    whole = digests_of(names)
    assert digests_of(names[5:]) + digests_of(names[4::-1]) == whole
    assert sorted(whole) == ["slices/0", "slices/1", "slices/2", "summary"]
    other = digests_of([*names[:-2], "slices/2/8.png.bak", names[-1]])  # as many, but one has another name
    assert {folder for folder in whole if whole[folder] != other[folder]} == {"slices/2"}
    assert digests_of([*names, names[0]]) != whole


def test_stored_files_are_listed_folder_by_folder(tmp_path: Path) -> None:
    names = ["slices/0/1.png", "slices/0/deeper/2.png", "slices/1/3.png", "slices/part.tar", "summary/part.parquet"]
    for name in (*names, "rejected/part.parquet", f"summary/.part.{disk.TEMPORARY}", "summary.json"):
        storage.write_bytes(str(tmp_path / name), b"")
    listed = [files for files in _stored_files(str(tmp_path)) if files]
    assert listed == [["slices/part.tar"], names[:2], names[2:3], names[4:]]


def test_a_file_is_no_finished_batch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"no finished batch at \S+file \(manifest.json is missing\): run the command"):
        read_finished(str(tmp_path / "file"))
