"""What names of image files say, and data sets that differ in nothing but their spelling."""

import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oasisgen import storage
from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Slice
from oasisgen.data.names import Named, parse_name
from oasisgen.data.parts import plan_parts, read_cases
from oasisgen.data.sources import survey
from oasisgen.errors import UserError
from tests.conftest import png


@pytest.mark.parametrize(
    ("path", "case", "subject", "level", "split"),
    [
        ("keras_png_slices_train/case_001_slice_0.nii.png", "001", "001", 0, "train"),
        ("Validation/OAS1_0003_MR1_slice_7.png", "OAS1_0003_MR1", "OAS1_0003", 7, "validate"),
        ("sub-012_T1w_slice007.png", "sub-012", "sub-012", 7, ""),
        ("val/sub-012_ses-1_T1w_slice007.jpg", "sub-012_ses-1", "sub-012", 7, "validate"),
        ("IXI002-Guys-0828-T1_z104.png", "IXI002-Guys-0828", "IXI002", 104, ""),
        ("sub-012_T2w_slice007.png", "sub-012_T2w", "sub-012", 7, ""),
        ("test-retest/sub-012_slice_7.png", "sub-012", "sub-012", 7, ""),
        ("Subject12-slice-3.JPEG", "Subject12", "Subject12", 3, ""),
        ("test/OAS1_0003_MR1/007.tif", "OAS1_0003_MR1", "OAS1_0003", 7, "test"),
        ("a/12/slice_7.bmp", "12", "12", 7, ""),
        ("train/sub-1/z104.png", "sub-1", "sub-1", 104, "train"),
    ],
)
def test_the_usual_names_are_understood(path: str, case: str, subject: str, level: int, split: str) -> None:
    assert parse_name(path) == Named(case, subject, level, split, labels=False)


@pytest.mark.parametrize(
    "path",
    [
        "keras_png_slices_seg_train/seg_001_slice_3.nii.png",
        "archive.zip/keras_png_slices_seg_train/seg_001_slice_3.nii.png",
        "train/labels/case_001_slice_3.png",
        "masks/001/3.png",
        "train/case_001_slice_3_seg.png",
    ],
)
def test_label_maps_are_told_from_slices(path: str) -> None:
    named = parse_name(path)
    assert (named.case, named.level, named.labels) == ("001", 3, True)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("train/brain.png", "does not tell case and level: expected names like"),
        ("train/007.png", "does not tell case and level"),
        ("train/case_1_slice_512.png", "level 512 is above 511"),
    ],
)
def test_other_names_have_a_reason(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_name(path)


def test_a_pattern_names_case_level_subject_and_split() -> None:
    pattern = re.compile(r"(?P<subject>p\d+)/(?P<session>\w+)/(?P<split>\w+)-(?P<level>\d+)")
    assert parse_name("p7/b/val-012.png", pattern) == Named("p7_b", "p7", 12, "validate", labels=False)
    with pytest.raises(ValueError, match="--pattern does not find its case and level"):
        parse_name("x.png", pattern)
    with pytest.raises(ValueError, match="--pattern finds split dev instead of"):
        parse_name("p7/b/dev-012.png", pattern)


def images() -> dict[tuple[str, str, int], np.ndarray]:
    """Slices by split, number of their case, and level."""
    random = np.random.default_rng(0)
    keys = [("train", "001", 0), ("train", "001", 1), ("train", "002", 0), ("validate", "003", 0), ("test", "004", 1)]
    smooth = np.linspace(0, 200, 64 * 96).reshape(64, 96)
    return {key: (smooth + random.integers(0, 50)).astype(np.uint8) for key in keys}


def folder(root: Path, name: Callable[[str, str, int], str], kind: str = "PNG") -> Path:
    for key, image in images().items():
        file = root / name(*key)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image, kind))
    return root


def zipped(root: Path) -> Path:
    """A .zip of a Mac, with its leftovers."""
    root.mkdir()
    with zipfile.ZipFile(root / "slices.zip", "w") as archive:
        for (split, case, level), image in images().items():
            archive.writestr(f"{split}/case_{case}_slice_{level}.png", png(image))
            archive.writestr(f"__MACOSX/{split}/._case_{case}_slice_{level}.png", b"\0\5\26\7")
        archive.writestr("train/.DS_Store", b"\0\0\0\1Bud1")
    return root


def tarred(root: Path) -> Path:
    root.mkdir()
    with tarfile.open(root / "slices.tar.gz", "w:gz") as archive:
        for (split, case, level), image in images().items():
            data = png(image)
            member = tarfile.TarInfo(f"data/{split}/case_{case}_slice_{level}.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return root


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "flat": lambda root: folder(root, lambda split, case, level: f"{split}/case_{case}_slice_{level}.nii.png"),
    "nested": lambda root: folder(root, lambda split, case, level: f"a/{split}/b/c/case_{case}_slice_{level}.png"),
    "image folder": lambda root: folder(root, lambda split, case, level: f"{split}_set/{case}/slice_{level:03d}.png"),
    "other splits": lambda root: folder(
        root, lambda split, case, level: f"my_{split.removesuffix('idate')}/{case}/{level}.png"
    ),
    "bmp": lambda root: folder(root, lambda split, case, level: f"{split}/case-{case}-z{level}.bmp", "BMP"),
    "tiff": lambda root: folder(root, lambda split, case, level: f"{split}/case_{case}_level_{level}.tif", "TIFF"),
    "a zip of a Mac": zipped,
    "tar.gz": tarred,
    "jpeg": lambda root: folder(root, lambda split, case, level: f"{split}/case_{case}_slice_{level}.jpg", "JPEG"),
    "pattern": lambda root: folder(root, lambda split, case, level: f"{split}/p{case}/x{level}y.png"),
}


def read(config: PackConfig) -> dict[tuple[str, str, int], np.ndarray]:
    found = survey(config)
    assert (found.rejected, found.image_size) == ((), (64, 96))
    return {
        (plan.split, case.case, each.level): each.image
        for plan in plan_parts(found, config, None)
        for case, each in read_cases(plan)
        if isinstance(each, Slice)
    }


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_slices_in_other_spellings_are_the_same_data_set(spelling: str, tmp_path: Path) -> None:
    source = SPELLINGS[spelling](tmp_path / "raw")
    pattern = r"p(?P<case>\d+)/x(?P<level>\d+)y" if spelling == "pattern" else None
    found = read(PackConfig(str(source), "out", pattern=pattern))
    assert found.keys() == images().keys()
    for key, image in images().items():
        assert np.abs(found[key].astype(int) - image).max() <= (6 if spelling == "jpeg" else 0)


def test_a_prefix_on_s3_with_folder_markers_is_the_same_data_set(s3: str) -> None:
    for (split, case, level), image in images().items():
        storage.write_bytes(f"{s3}/spelling/{split}/case_{case}_slice_{level}.png", png(image))
    storage.write_bytes(f"{s3}/spelling/train/Thumbs.db", b"thumbs")
    found = read(PackConfig(f"{s3}/spelling", "out"))
    assert all(np.array_equal(found[key], image) for key, image in images().items())


def test_no_image_vanishes(tmp_path: Path) -> None:
    source = SPELLINGS["flat"](tmp_path / "raw")
    (source / "dev").mkdir()
    (source / "dev" / "case_009_slice_0.png").write_bytes(png(next(iter(images().values()))))
    (source / "train" / "overview.png").write_bytes(b"")
    (source / "README.md").write_text("beside")
    found = survey(PackConfig(str(source), "out"))
    assert {file.file: file.reason[:30] for file in found.rejected} == {
        "dev/case_009_slice_0.png": "not in the folder of a split (",
        "train/overview.png": "its name does not tell case an",
    }
    assert [(unused.reason, unused.examples) for unused in found.unused] == [("not an image", ("README.md",))]
    with pytest.raises(UserError, match=r"no slices in .*: --pattern does not find its case and level"):
        survey(PackConfig(str(source), "out", pattern=r"nothing(?P<case>x)(?P<level>\d)"))
