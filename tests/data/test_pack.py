import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from oasisgen.claim import claim
from oasisgen.data.pack import decode, pack, refuse_overlap, survey
from oasisgen.data.phantom import write_phantoms
from oasisgen.errors import UserError
from tests.conftest import png

GREY = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint8)


def fill(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(png(GREY))


@pytest.mark.parametrize("layout", ["keras_png_slices_{}", "{}", "{}/slices", "keras_png_slices_{}/a/b"])
def test_the_usual_layouts_are_understood(layout: str, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "validate", "test")):
        fill(tmp_path / layout.format(split), [f"case_00{number}_slice_{level}.nii.png" for level in (0, 31)])
    fill(tmp_path / "keras_png_slices_seg_train", ["seg_000_slice_0.nii.png"])
    (tmp_path / "README.md").write_text("beside the data")
    found = survey(str(tmp_path))
    assert {split: [entry[1:] for entry in entries] for split, entries in found.slices.items()} == {
        "train": [("000", 0), ("000", 31)],
        "validate": [("001", 0), ("001", 31)],
        "test": [("002", 0), ("002", 31)],
    }
    assert found.label_maps == 1
    assert found.rejected == []


def test_what_cannot_be_used_is_set_aside_and_named(connected: str, tmp_path: Path) -> None:
    train = tmp_path / "raw" / "train"
    fill(train, ["case_001_slice_0.nii.png", "case_001_slice_7.nii.png"])
    rgb = np.stack([GREY] * 3, -1)
    (train / "case_001_slice_1.nii.png").write_bytes(png(rgb))
    rgb[0, 0, 0] += 1
    (train / "case_001_slice_2.nii.png").write_bytes(png(rgb))
    (train / "case_001_slice_3.nii.png").write_bytes(png(GREY)[:200])
    (train / "case_001_slice_4.nii.png").write_bytes(png(GREY[:100]))
    (train / "case_001_slice_5.nii.png").write_bytes(png(GREY, "JPEG"))
    (train / "case_001_slice_6.nii.png").write_bytes(b"no image at all")
    (train / "case_001_slice_8.nii.png").write_bytes(png(Image.fromarray(GREY.astype(np.int32), "I").convert("I;16")))
    (train / "case_001_slice_7.png").write_bytes(png(GREY))
    (train / "case_001_slice_32.nii.png").write_bytes(png(GREY))
    (train / "notes.txt").write_text("hello")
    out = tmp_path / "datasets" / "d"
    described = pack(str(tmp_path / "raw"), str(out))

    reasons = {file["file"].removeprefix("train/"): file["reason"] for file in described["rejected"]}
    expected = {
        "case_001_slice_2.nii.png": "RGB with unequal channels",
        "case_001_slice_3.nii.png": "truncated or damaged",
        "case_001_slice_4.nii.png": "256 x 100 pixels instead of 256 x 256",
        "case_001_slice_5.nii.png": "not a PNG but a JPEG",
        "case_001_slice_6.nii.png": "not an image",
        "case_001_slice_7.png": "same case and level as train/case_001_slice_7.nii.png",
        "case_001_slice_8.nii.png": "mode I;16 instead of 8-bit greyscale",
        "case_001_slice_32.nii.png": "level 32 is above 31",
        "notes.txt": "not named case_",
    }
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(reason) for name, reason in expected.items()), reasons
    table = pq.read_table(out / "train" / "part-00000.parquet")  # without Ray
    assert table["level"].to_pylist() == [0, 1, 7]
    assert all(np.array_equal(np.frombuffer(image, np.uint8), GREY.ravel()) for image in table["image"].to_pylist())
    assert table.schema.names == ["case", "level", "height", "width", "image"]
    assert json.loads((out / "dataset.json").read_text()) == described

    with pytest.raises(UserError, match=r"9 files rejected, train/.*: .*; mend them or drop --strict"):
        pack(str(tmp_path / "raw"), str(tmp_path / "strict"), strict=True)
    assert not (tmp_path / "strict" / "dataset.json").exists()
    with pytest.raises(UserError, match="9 files rejected"):  # a finished data set is no way around it
        pack(str(tmp_path / "raw"), str(out), strict=True)


def test_packing_again_changes_nothing_and_other_files_are_refused(connected: str, tmp_path: Path) -> None:
    fill(tmp_path / "raw" / "train", [f"case_00{case}_slice_0.nii.png" for case in range(3)])
    out = tmp_path / "d"
    first = pack(str(tmp_path / "raw"), str(out))
    part = out / "train" / "part-00000.parquet"
    written = part.read_bytes(), part.stat().st_mtime_ns
    assert pack(str(tmp_path / "raw"), str(out)) == first
    assert (part.read_bytes(), part.stat().st_mtime_ns) == written
    (out / "dataset.json").unlink()  # as if it had been interrupted, when it had more files
    (out / "train" / "part-00007.parquet").write_bytes(b"of another source")
    assert pack(str(tmp_path / "raw"), str(out)) == first
    assert [file.name for file in (out / "train").iterdir()] == ["part-00000.parquet"]
    assert part.read_bytes() == written[0]
    (tmp_path / "raw" / "train" / "case_009_slice_0.nii.png").write_bytes(png(GREY))
    with pytest.raises(UserError, match="was packed from"):
        pack(str(tmp_path / "raw"), str(out))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_packing_into_its_source_is_refused_and_loses_nothing(connected: str, tmp_path: Path) -> None:
    raw, link = tmp_path / "raw", tmp_path / "link"
    for split in ("train", "validate"):
        fill(raw / split, [f"case_00{len(split)}_slice_{level}.nii.png" for level in range(3)])
    (raw / "train" / "notes.txt").write_text("mine")
    link.symlink_to(raw)
    before = files_below(raw)
    for out in (raw, raw / "packed", raw / "train", tmp_path, link / "packed", Path(f"file:{raw}")):
        spelling = f"file://{raw}" if "file:" in str(out) else str(out)
        with pytest.raises(UserError, match=r"--out .* and --source .* overlap"):
            pack(str(raw), spelling)
    linked = tmp_path / "source"
    linked.mkdir()
    (linked / "train").symlink_to(raw / "train")
    with pytest.raises(UserError, match="overlap"):
        pack(str(linked), str(raw / "train"))
    assert files_below(raw) == before


def test_packing_into_a_prefix_of_its_source_is_refused(s3: str) -> None:
    with pytest.raises(UserError, match="overlap"):
        refuse_overlap(f"{s3}/raw", f"{s3}/raw/packed/")
    refuse_overlap(f"{s3}/raw", f"{s3}/raw-packed")


def test_a_folder_with_files_of_somebody_else_is_left_alone(connected: str, tmp_path: Path) -> None:
    fill(tmp_path / "raw" / "train", ["case_001_slice_0.nii.png"])
    out = tmp_path / "theirs"
    (out / "train").mkdir(parents=True)
    (out / "train" / "part-00000.parquet").write_bytes(b"theirs")
    before = files_below(tmp_path)
    with pytest.raises(UserError, match=r"theirs holds files that are not ours \(train\): use another --out"):
        pack(str(tmp_path / "raw"), str(out))
    for settings in ({"seed": 0}, {"seed": 1}):
        with pytest.raises(UserError, match="holds files that are not ours"):
            claim(str(out), settings)
    with pytest.raises(UserError, match="holds files that are not ours"):
        write_phantoms(str(tmp_path / "raw"), {"train": 1}, seed=0)
    assert files_below(tmp_path) == before


def test_of_its_own_folder_packing_removes_parts_only(connected: str, tmp_path: Path) -> None:
    fill(tmp_path / "raw" / "train", ["case_001_slice_0.nii.png"])
    out = tmp_path / "d"
    pack(str(tmp_path / "raw"), str(out))
    (out / "dataset.json").unlink()
    (out / "train" / "part-00007.parquet").write_bytes(b"of an interrupted call")
    (out / "train" / "notes.txt").write_text("somebody's")
    pack(str(tmp_path / "raw"), str(out))
    assert sorted(file.name for file in (out / "train").iterdir()) == ["notes.txt", "part-00000.parquet"]


def test_an_unusable_source_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder at .*missing"):
        survey(str(tmp_path / "missing"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"no folder at .*file"):
        survey(str(tmp_path / "file"))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("")
    with pytest.raises(UserError, match="no slices in"):
        survey(str(tmp_path))
    shutil.rmtree(tmp_path / "train")
    fill(tmp_path / "train", ["case_001_slice_0.nii.png"])
    fill(tmp_path / "validate", ["case_001_slice_1.nii.png"])
    with pytest.raises(UserError, match="case 001 is in train and in validate"):
        survey(str(tmp_path))


def test_rgba_and_palettes_are_not_guessed_at() -> None:
    for mode in ("RGBA", "P", "1", "LA"):
        with pytest.raises(ValueError, match="instead of 8-bit greyscale"):
            decode(png(Image.fromarray(GREY).convert(mode)))


def test_the_real_slices_are_all_there(oasis: Path) -> None:
    found = survey(str(oasis))
    assert {split: len(entries) for split, entries in found.slices.items() if split != "test"} == {
        "train": 9664,
        "validate": 1120,
    }
    assert len({case for _, case, _ in found.slices["train"]}) == 302
    assert found.rejected == []
    assert found.label_maps == 1120
