"""README's recipes, as written there."""

import re
from pathlib import Path

import pyarrow.fs
import pytest

from oasisgen import storage
from tests.conftest import ROOT


def recipe(first: str) -> str:
    """The block of Python whose first line is `first`."""
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, text in blocks if first in text[:40]]
    return found


@pytest.fixture
def root(batch: Path, s3: str) -> str:
    """A folder of nights on S3 with one batch in it."""
    system, path = storage.resolve(f"{s3}/readme/batches")
    pyarrow.fs.copy_files(str(batch), f"{path}/2026-11-24", destination_filesystem=system)
    return f"{s3}/readme/batches"


def test_a_batch_is_read_with_pandas_duckdb_and_torchvision(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(recipe("import duckdb").replace("s3://bucket/batches", root), names)
    assert len(names["slices"]) == len(names["images"]) == 40  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "ssim_train_max" in said
    assert "nearest_case" in said


def test_a_quarantined_batch_is_not_taken(root: str) -> None:
    names: dict[str, object] = {}
    code = recipe("import json").replace("s3://bucket/batches", root)
    exec(code, names)
    assert (len(names["there"]), names["released"]) == (1, [])  # type: ignore[arg-type]
    manifest = f"{root}/2026-11-24/manifest.json"
    storage.write_text(manifest, storage.read_bytes(manifest).decode().replace("quarantined", "released"))
    exec(code, names)
    assert len(names["released"]) == 1  # type: ignore[arg-type]
