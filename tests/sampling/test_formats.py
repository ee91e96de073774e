import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oasisgen import storage
from oasisgen.config.generate import Format
from oasisgen.sampling.formats import SliceWriter, part_path, read_pngs, slice_path, write_part_file


def rows(kind: Format, uri: str) -> pa.Table:
    """Three slices of part 7, the second of them refused, as the pipeline's last step leaves them."""
    batch = {
        "id": np.array([9_999, 10_000, 10_001]),
        "level": np.array([15, 16, 17]),
        "part": np.array([7, 7, 7]),
        "png": np.array([b"one", b"two", b"three"], dtype=object),
        "refused": np.array(["", "a copy", ""]),
    }
    written = SliceWriter(uri, kind)(batch)
    return pa.table({name: list(values) for name, values in written.items()})


def test_pngs_lie_ten_thousand_to_a_folder(place: str) -> None:
    table = rows("png", place)
    assert table["file"].to_pylist()[::2] == ["slices/0/0000009999.png", "slices/1/0000010001.png"]
    assert "png" not in table.column_names
    assert storage.read_bytes(f"{place}/slices/1/0000010001.png") == b"three"
    assert not storage.exists(f"{place}/{slice_path(10_000)}")
    assert list(read_pngs(place, "png", table)) == [(9_999, b"one"), (10_000, None), (10_001, b"three")]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_part_in_one_file_has_equal_bytes_and_gives_its_pngs_back(kind: Format, tmp_path: Path) -> None:
    kept = rows(kind, str(tmp_path)).take([0, 2])
    file = tmp_path / part_path(7, kind)
    write_part_file(str(tmp_path), 7, kind, kept)
    first = file.read_bytes()
    write_part_file(str(tmp_path), 7, kind, kept)
    assert file.read_bytes() == first
    assert list(read_pngs(str(tmp_path), kind, kept.select(["id", "file"]))) == [(9_999, b"one"), (10_001, b"three")]
    file.write_bytes(first[:50])
    assert [png for _, png in read_pngs(str(tmp_path), kind, kept)] == [None, None]


def labelled(kind: Format, uri: str) -> pa.Table:
    """Two slices with their label maps, and a refused one."""
    batch = {
        "id": np.array([9_999, 10_000, 10_001]),
        "level": np.array([15, 16, 17]),
        "part": np.array([7, 7, 7]),
        "png": np.array([b"one", b"two", b"three"], dtype=object),
        "labels_png": np.array([b"map one", b"map two", b"map three"], dtype=object),
        "refused": np.array(["", "a copy", ""]),
    }
    return pa.table({name: list(values) for name, values in SliceWriter(uri, kind)(batch).items()})


@pytest.mark.parametrize("kind", ["png", "parquet", "webdataset"])
def test_label_maps_lie_beside_their_slices(kind: Format, tmp_path: Path) -> None:
    uri = str(tmp_path)
    kept = labelled(kind, uri).take([0, 2])
    write_part_file(uri, 7, kind, kept)
    rows = kept.select(["id", "file", "labels_file"])
    assert list(read_pngs(uri, kind, rows)) == [(9_999, b"one"), (10_001, b"three")]
    assert list(read_pngs(uri, kind, rows, "labels")) == [(9_999, b"map one"), (10_001, b"map three")]
    if kind == "png":
        files = {str(file.relative_to(tmp_path)) for file in (tmp_path / "labels").rglob("*.png")}
        assert files == {"labels/0/0000009999.png", "labels/1/0000010001.png"}
    elif kind == "parquet":
        read = pq.read_table(tmp_path / "slices" / "part-00007.parquet")
        assert read.column_names == ["id", "level", "png", "labels"]
    else:
        with tarfile.open(tmp_path / "slices" / "part-00007.tar") as archive:
            assert archive.getnames()[:3] == ["0000009999.png", "0000009999.labels.png", "0000009999.json"]


def test_others_can_read_them(tmp_path: Path) -> None:
    kept = rows("parquet", str(tmp_path)).take([0, 2])
    write_part_file(str(tmp_path), 7, "parquet", kept)
    assert pq.read_table(tmp_path / "slices" / "part-00007.parquet").column_names == ["id", "level", "png"]
    write_part_file(str(tmp_path), 7, "webdataset", kept)
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "slices" / "part-00007.tar").read_bytes())) as archive:
        assert archive.getnames() == ["0000009999.png", "0000009999.json", "0000010001.png", "0000010001.json"]
        about = archive.extractfile("0000010001.json")
        assert about
        assert about.read() == b'{"id": 10001, "level": 17}'
