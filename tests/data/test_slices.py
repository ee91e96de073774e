import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from oasisgen.config.pack import PackConfig
from oasisgen.data.pack import pack
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.data.slices import DataSet, open_data_set, read_slices
from oasisgen.errors import UserError


def test_all_grey_values_survive_the_way_to_the_device_and_back() -> None:
    grey = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(grey)
    assert (unit.min().item(), unit.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(unit), grey)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_data_set_reads_in_order_with_the_pixels_it_was_packed_from(data: DataSet, raw: Path) -> None:
    from PIL import Image

    rows = read_slices(data, "validate").take_all()
    keys = [(row["case"], row["level"]) for row in rows]
    assert keys == sorted(keys)
    assert len(keys) == 64
    for row in rows[::13]:
        name = f"keras_png_slices_validate/case_{row['case']}_slice_{row['level']}.nii.png"
        assert np.array_equal(row["image"], np.asarray(Image.open(raw / name)))


def test_a_damaged_data_set_is_named_before_it_is_read(data: DataSet, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data.uri, copy)
    part = copy / "train" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"part-00000\.parquet has \d+ bytes instead of \d+"):
        read_slices(open_data_set(str(copy)), "train")
    part.unlink()
    with pytest.raises(UserError, match=r"part-00000\.parquet is missing"):
        read_slices(open_data_set(str(copy)), "train")
    with pytest.raises(UserError, match="has no test split"):
        read_slices(open_data_set(str(copy)), "test")
    (copy / "dataset.json").unlink()
    with pytest.raises(UserError, match="no packed data set at"):
        open_data_set(str(copy))


def test_the_image_size_of_a_data_set_is_checked(data: DataSet, tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    described = data.description.to_json()
    for size, said in (
        ([100, 128], r"a size it cannot have \(height is 100: must be a multiple of 32 from 64 to 512\): pack others"),
        ([256, 1024], r"a size it cannot have \(width is 1024"),
        ([256], "image_size.1: field required"),
        (None, "image_size: field required"),
    ):
        written = described | {"image_size": size}
        file.write_text(json.dumps({name: value for name, value in written.items() if value is not None}))
        with pytest.raises(UserError, match=said) as raised:
            open_data_set(str(tmp_path))
        assert "\n" not in str(raised.value)
    file.write_text(json.dumps(described))
    assert open_data_set(str(tmp_path)).description == data.description


def test_a_flipped_bit_in_a_shard_is_one_clear_line(data: DataSet, tmp_path: Path) -> None:
    shutil.copytree(data.uri, tmp_path / "copy")
    part = tmp_path / "copy" / "validate" / "part-00000.parquet"
    whole = part.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # in the compressed pixels
    part.write_bytes(flipped)
    with pytest.raises(UserError, match=r"part-00000\.parquet is not the file that was packed"):
        read_slices(open_data_set(str(tmp_path / "copy")), "validate").take_all()
    part.write_bytes(whole)
    assert len(read_slices(open_data_set(str(tmp_path / "copy")), "validate").take_all()) == 64


def test_a_data_set_that_is_packed_anew_under_a_running_job_is_refused(data: DataSet, tmp_path: Path) -> None:
    shutil.copytree(data.uri, tmp_path / "copy")
    opened = open_data_set(str(tmp_path / "copy"))
    slices = read_slices(opened, "validate")
    part = tmp_path / "copy" / "validate" / "part-00000.parquet"
    table = pq.read_table(part)
    inverted = [bytes(255 - np.frombuffer(image, np.uint8)) for image in table["image"].to_pylist()]
    pq.write_table(table.set_column(4, "image", pa.array(inverted, pa.binary())), part)
    with pytest.raises(UserError, match=r"part-00000\.parquet is not the file that was packed"):
        slices.take_all()


def as_version_1(uri: str, copy: Path) -> str:
    """A copy of a data set as oasisgen 1 wrote it: no subjects, no labels, and a shorter dataset.json."""
    shutil.copytree(uri, copy)
    described = json.loads((copy / "dataset.json").read_text()) | {"schema_version": 1}
    for name in ("layout", "settings", "levels", "label_classes", "slices_without_labels", "covariates", "unused"):
        del described[name]
    for split, of in described["splits"].items():
        for part in of["parts"]:
            file = copy / split / part["name"]
            pq.write_table(pq.read_table(file).drop_columns(["subject", "labels"]), file)
            part |= {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (copy / "dataset.json").write_text(json.dumps(described))
    return str(copy)


def test_data_sets_of_version_1_are_read_and_not_packed_over(data: DataSet, raw: Path, tmp_path: Path) -> None:
    older = open_data_set(as_version_1(data.uri, tmp_path / "older"))
    assert (older.description.schema_version, older.image_size, older.levels) == (1, (256, 256), 32)
    now, then = read_slices(data, "validate").take_all(), read_slices(older, "validate").take_all()
    for new, old in zip(now, then, strict=True):
        assert (new["case"], new["case"], new["level"]) == (old["case"], old["subject"], old["level"])
        assert np.array_equal(new["image"], old["image"])
    with pytest.raises(UserError, match="was packed by an older version of oasisgen, without subjects and label maps"):
        pack(PackConfig(str(raw), older.uri))
