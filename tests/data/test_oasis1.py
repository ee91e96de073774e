"""OASIS-1 as its own site distributes it, made from slices: packing it must give these slices back."""

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nibabel.analyze import AnalyzeImage
from PIL import Image

from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Slice
from oasisgen.data.description import RejectedFile
from oasisgen.data.oasis1 import AREAS, split_of
from oasisgen.data.parts import plan_parts, read_cases
from oasisgen.data.sources import survey
from oasisgen.errors import UserError
from tests.conftest import png

SHAPE = 176, 208, 176
Read = dict[str, list[Slice]]
Slices = tuple[np.ndarray, np.ndarray]  # (32, 256, 256) uint8 images; (32, 256, 256) uint8 classes


def synthetic(seed: int) -> Slices:
    """Random slices whose label maps have the areas of OASIS-1's atlas."""
    random = np.random.default_rng(seed)
    images = np.zeros((32, 256, 256), np.uint8)
    images[:, 40:216, 24:232] = random.integers(0, 255, (32, 176, 208))
    images[:, 100, 100] = 255  # each slice reaches the maximum, as those of the archive do
    labels = np.zeros((32, 176 * 208), np.uint8)
    for level, area in enumerate(AREAS):
        labels[level, :area] = random.integers(1, 4, area)
    placed = np.zeros((32, 256, 256), np.uint8)
    placed[:, 40:216, 24:232] = labels.reshape(32, 176, 208)
    return images, placed


def write_pair(stem: Path, voxels: np.ndarray, byte_order: str) -> None:
    """Write an Analyze pair."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    header = AnalyzeImage.header_class(endianness=byte_order)
    header.set_data_dtype(np.int16)
    image = AnalyzeImage(voxels.astype(np.int16)[..., None], np.eye(4), header)
    image.to_filename(f"{stem}.img")


def write_scan(folder: Path, name: str, slices: Slices, seed: int, first: int = 60, byte_order: str = ">") -> Path:
    """Write a scan of the official layout, with other voxels around the slices and values scaled by random factors.

    The factors are whole numbers per slice, so that 255 v / max is exact."""
    random = np.random.default_rng(seed)
    images, labels = slices
    scan = random.integers(0, 3000, SHAPE)
    classes = np.zeros(SHAPE, np.int64)
    for level in range(32):
        scan[..., first + level] = images[level, 40:216, 24:232].astype(np.int64) * random.integers(1, 129)
        classes[..., first + level] = labels[level, 40:216, 24:232]
    case = folder / name
    write_pair(case / "PROCESSED/MPRAGE/T88_111" / f"{name}_mpr_n4_anon_111_t88_gfc", scan, byte_order)
    write_pair(case / "PROCESSED/MPRAGE/T88_111" / f"{name}_mpr_n4_anon_111_t88_masked_gfc", scan, byte_order)
    write_pair(case / "FSL_SEG" / f"{name}_mpr_n4_anon_111_t88_masked_gfc_fseg", classes, byte_order)
    (case / f"{name}.txt").write_text("SESSION ID")
    return case


def read(source: Path, layout: str = "auto") -> tuple[Read, list[RejectedFile]]:
    """The slices of all cases, and what is rejected."""
    config = PackConfig(str(source), "out", layout=layout)  # type: ignore[arg-type]
    found = survey(config)
    slices: Read = {}
    rejected = [*found.rejected]
    for plan in plan_parts(found, config, None):
        for case, each in read_cases(plan):
            if isinstance(each, Slice):
                slices.setdefault(f"{plan.split} {case.case}", []).append(each)
            else:
                rejected.append(each)
    return slices, rejected


def require_same(found: list[Slice], images: np.ndarray, labels: np.ndarray | None) -> None:
    assert [each.level for each in found] == list(range(32))
    assert np.array_equal([each.image for each in found], images)
    for level, each in enumerate(found):
        if labels is None:
            assert each.labels is None
        else:
            assert each.labels is not None
            assert np.array_equal(each.labels, labels[level])


def without_labels(case: Path) -> None:
    for file in (case / "FSL_SEG").iterdir():
        file.unlink()


def test_the_official_volumes_give_the_slices_labels_and_splits_of_the_png_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = {"OAS1_0003_MR1": 57, "OAS1_0003_MR2": 57, "OAS1_0402_MR1": 31, "OAS1_0457_MR1": 144}
    slices = {name: synthetic(seed) for seed, name in enumerate(scans)}
    for seed, (name, first) in enumerate(scans.items()):
        write_scan(tmp_path / "raw" / f"disc{seed}", name, slices[name], seed, first, "<>"[seed % 2])
    write_scan(tmp_path / "raw" / "disc4", "OAS1_0073_MR1", synthetic(9), 9)
    found, rejected = read(tmp_path / "raw")
    names = ["train OAS1_0003_MR1", "train OAS1_0003_MR2", "validate OAS1_0402_MR1", "test OAS1_0457_MR1"]
    assert list(found) == names
    assert rejected == []
    for name in names:
        require_same(found[name], *slices[name.split()[1]])
    assert "oasis1: 5 scans of 4 subjects" in capsys.readouterr().out
    unused = {each.reason: each for each in survey(PackConfig(str(tmp_path / "raw"), "out")).unused}
    assert unused["a case that is in no split of the source"].examples == ("OAS1_0073_MR1",)
    for name in scans:  # the same slices as PNGs
        split = split_of(int(name[5:9]))
        folder = tmp_path / "png" / f"keras_png_slices_{split}"
        folder.mkdir(parents=True, exist_ok=True)
        if name.endswith("MR1"):
            for level, image in enumerate(slices[name][0]):
                (folder / f"case_{name[6:9]}_slice_{level}.nii.png").write_bytes(png(image))
    as_png, _ = read(tmp_path / "png")
    assert list(as_png) == ["train 003", "validate 402", "test 457"]
    for name, of in as_png.items():
        split, number = name.split()
        labels = slices[f"OAS1_0{number}_MR1"][1]
        require_same(found[f"{split} OAS1_0{number}_MR1"], np.array([each.image for each in of]), labels)


@pytest.mark.parametrize("agree", [True, False])
def test_a_scan_without_labels_takes_level_0_of_the_others_only_if_they_agree(agree: bool, tmp_path: Path) -> None:
    images, labels = synthetic(0)
    without_labels(write_scan(tmp_path / "disc1", "OAS1_0001_MR1", (images, labels), 0, 60))
    write_scan(tmp_path / "disc1", "OAS1_0002_MR1", (images, labels), 1, 60)
    write_scan(tmp_path / "disc1", "OAS1_0402_MR1", (images, labels), 2, 60 if agree else 61)
    found, rejected = read(tmp_path)
    if agree:
        require_same(found["train OAS1_0001_MR1"], images, None)
        assert rejected == []
    else:
        assert list(found) == ["train OAS1_0002_MR1", "validate OAS1_0402_MR1"]
        (one,) = rejected
        assert (one.file, one.reason) == (
            "OAS1_0001_MR1",
            "no FSL_SEG volume, and those of the other scans give 2 places of level 0 instead of one",
        )


def scan_file(case: Path, kind: str) -> Path:
    return next(case.glob(f"PROCESSED/MPRAGE/T88_111/*t88_gfc.{kind}"))


def label_file(case: Path, kind: str) -> Path:
    return next(case.glob(f"FSL_SEG/*.{kind}"))


def cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def patch(file: Path, offset: int, data: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[offset : offset + len(data)] = data
    file.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda case: cut(scan_file(case, "img"), 10**6),
        "1000000 bytes of voxels, 12886016 are needed: trunc",
    ),
    "a short header": (
        lambda case: cut(scan_file(case, "hdr"), 100),
        "a header of 100 bytes instead of 348: truncated",
    ),
    "an empty header": (lambda case: cut(label_file(case, "hdr"), 0), "a header of 0 bytes instead of 348: truncated"),
    "no header": (lambda case: scan_file(case, "hdr").unlink(), r"no t88_gfc\.hdr: copy the scan again"),
    "no voxels": (lambda case: label_file(case, "img").unlink(), r"no t88_masked_gfc_fseg\.img: copy the scan again"),
    "too many voxels": (
        lambda case: patch(scan_file(case, "hdr"), 42, b"\x7f\xff"),
        "32767 x 208 x 176 x 1 voxels inst",
    ),
    "a strange type": (lambda case: patch(scan_file(case, "hdr"), 70, b"\x00\x63"), "no Analyze header"),
    "floats": (lambda case: patch(scan_file(case, "hdr"), 70, b"\x00\x10"), "voxels of type >f4 instead of integers"),
    "a strange label": (
        lambda case: patch(label_file(case, "img"), 0, b"\x00\x09"),
        "labels from 0 to 9 instead of 0 to 3",
    ),
    "another mask": (lambda case: patch(label_file(case, "img"), 2 * 176 * 208 * 60, b"\0\0"), "areas of its FSL_SEG"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_scan_is_rejected_with_the_reason_and_the_rest_is_packed(bad: str, tmp_path: Path) -> None:
    make, said = BAD[bad]
    good = synthetic(0)
    make(write_scan(tmp_path / "disc1", "OAS1_0001_MR1", good, 0))
    write_scan(tmp_path / "disc1", "OAS1_0402_MR1", good, 1)
    found, (rejected,) = read(tmp_path)
    assert list(found) == ["validate OAS1_0402_MR1"]
    assert rejected.file == "OAS1_0001_MR1"
    assert re.search(said, rejected.reason), rejected.reason


def test_a_source_of_two_layouts_is_refused_and_layout_chooses(tmp_path: Path) -> None:
    slices = synthetic(0)
    write_scan(tmp_path / "disc1", "OAS1_0001_MR1", slices, 0)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "case_001_slice_0.nii.png").write_bytes(png(slices[0][0]))
    with pytest.raises(UserError, match="choose with --layout oasis1 or --layout slices"):
        read(tmp_path)
    assert list(read(tmp_path, "oasis1")[0]) == ["train OAS1_0001_MR1"]
    assert list(read(tmp_path, "slices")[0]) == ["train 001"]
    with pytest.raises(UserError, match=r"no OASIS-1 scans in .*: expected OAS1_xxxx_MR1/PROCESSED/MPRAGE/T88_111"):
        read(tmp_path / "train", "oasis1")


@pytest.mark.skipif("OASISGEN_OASIS_DIR" not in os.environ, reason="needs OASIS: set OASISGEN_OASIS_DIR")
def test_real_slices_come_back_from_volumes_made_of_them(tmp_path: Path) -> None:
    source = Path(os.environ["OASISGEN_OASIS_DIR"])
    slices: dict[str, Slices] = {}
    with zipfile.ZipFile(source / "keras_png_slices_seg_train.zip") as labels:
        for number in ("001", "002", "400"):
            images = [
                np.asarray(Image.open(source / "keras_png_slices_train" / f"case_{number}_slice_{level}.nii.png"))
                for level in range(32)
            ]
            names = [f"keras_png_slices_seg_train/seg_{number}_slice_{level}.nii.png" for level in range(32)]
            maps = [np.asarray(Image.open(io.BytesIO(labels.read(name)))) // 85 for name in names]
            slices[number] = np.array(images), np.array(maps)
            write_scan(tmp_path, f"OAS1_0{number}_MR1", slices[number], int(number), 40 + int(number) % 50)
    found, rejected = read(tmp_path)
    assert rejected == []
    for number, of in slices.items():
        require_same(found[f"train OAS1_0{number}_MR1"], *of)


def test_a_disc_archive_is_read_in_place(tmp_path: Path) -> None:
    slices = synthetic(0)
    write_scan(tmp_path / "disc1", "OAS1_0001_MR1", slices, 0)
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "oasis_cross-sectional_disc1.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(tmp_path / "disc1", "disc1")
    for source in (tmp_path / "raw", tmp_path / "raw" / "oasis_cross-sectional_disc1.tar.gz"):
        found, rejected = read(source)
        assert (list(found), rejected) == (["train OAS1_0001_MR1"], [])
        require_same(found["train OAS1_0001_MR1"], *slices)
    assert [file.name for file in (tmp_path / "raw").iterdir()] == ["oasis_cross-sectional_disc1.tar.gz"]
