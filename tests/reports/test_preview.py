import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Slice
from oasisgen.data.pack import pack
from oasisgen.errors import UserError
from oasisgen.reports.figures import GAP, overlay
from oasisgen.reports.preview import contact_sheet, write_preview
from tests.conftest import png

GREY = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint8)


def source(folder: Path, cases: int = 5, levels: int = 3) -> Path:
    for case in range(cases):
        home = folder / ("validate" if case == cases - 1 else "train")
        home.mkdir(parents=True, exist_ok=True)
        for level in range(levels):
            (home / f"case_{case:03d}_slice_{level}.nii.png").write_bytes(png(np.roll(GREY, case + level)))
    return folder


def test_a_preview_shows_cases_and_packs_nothing(connected: str, tmp_path: Path) -> None:
    raw, out = source(tmp_path / "raw"), tmp_path / "out"
    (raw / "train" / "case_000_slice_1.nii.png").write_bytes(b"no image")
    (raw / "notes.txt").write_text("beside the data")
    page = Path(write_preview(PackConfig(str(raw), str(out), preview=3))).read_text()
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == [
        "preview.txt",
        "preview/index.html",
        "preview/slices.png",
    ]
    for said in ("<td>000</td>", "<td>002</td>", "<td>004</td>", "train/case_000_slice_1.nii.png", "notes.txt"):
        assert said in page
    assert "<td>001</td>" not in page
    sheet = Image.open(out / "preview" / "slices.png")
    assert sheet.size == (GAP + 3 * (256 + GAP), GAP + 3 * (256 + GAP))  # three cases of up to three levels
    assert pack(PackConfig(str(raw), str(out)))  # the folder is ours


def test_label_maps_are_drawn_over_their_slices() -> None:
    labels = np.zeros((64, 96), np.uint8)
    labels[:32], labels[32:48] = 1, 7  # the colors repeat
    of = Slice(0, np.full((64, 96), 100, np.uint8), labels)
    over = overlay(of.image, of.labels)
    assert (over[48:] == 100).all()
    assert np.array_equal(over[0, 0], over[40, 0])
    assert len(set(over[0, 0].tolist())) > 1
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([[of, of], [Slice(1, of.image)]]))))
    assert sheet.shape == (GAP + 3 * (64 + GAP), GAP + 2 * (96 + GAP), 3)  # slices, label maps, slices of the second
    assert np.array_equal(sheet[64 + 2 * GAP :][:64, GAP:][:, :96], over)


def test_a_preview_that_shows_nothing_or_has_no_place_is_one_line(tmp_path: Path) -> None:
    raw = source(tmp_path / "raw", cases=1, levels=1)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "preview").mkdir()
    with pytest.raises(UserError, match="theirs holds files that oasisgen did not write"):
        write_preview(PackConfig(str(raw), str(theirs), preview=3))
    with pytest.raises(UserError, match="overlap"):
        write_preview(PackConfig(str(raw), str(raw / "out"), preview=3))
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "validate").symlink_to(raw / "validate")
    before = sorted(raw.rglob("*"))
    with pytest.raises(UserError, match="overlap"):
        write_preview(PackConfig(str(linked), str(raw / "validate"), preview=3))
    assert sorted(raw.rglob("*")) == before
    (raw / "validate" / "case_000_slice_0.nii.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no slice of the cases shown can be read: .*slice_0.nii.png: not a PNG"):
        write_preview(PackConfig(str(raw), str(tmp_path / "out"), preview=3))
    with pytest.raises(ValueError, match="preview is 101: must be from 0 to 100"):
        PackConfig("a", "b", preview=101)
