import subprocess
import sys
from pathlib import Path

import pytest

from oasisgen import storage
from oasisgen.errors import UserError


def test_a_file_comes_back_whole_by_path_and_by_uri(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b"), b"\x00\xff")
    assert storage.read_bytes(f"file://{tmp_path}/a/b") == b"\x00\xff"
    assert list(storage.list_files(str(tmp_path))) == [("a/b", 2)]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """The kernel refuses files over 100 bytes, in the middle of the write: what a full disk does."""
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")
    script = f"""
import resource, signal
from oasisgen import storage
from oasisgen.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    storage.write_bytes({str(target)!r}, bytes(1000))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    assert target.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_an_unknown_scheme_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gopher://x"):
        storage.resolve("gopher://x")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        storage.read_json(str(tmp_path / "x.json"))


def test_a_relative_path_is_the_same_place_for_every_process() -> None:
    assert storage.absolute("a/../b/") == str(Path.cwd() / "b")
    assert storage.absolute("s3://bucket/run/") == "s3://bucket/run"
