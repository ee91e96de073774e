import json
import os
import shutil
import struct
import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from oasisgen import storage
from oasisgen.config.folder import write_settings
from oasisgen.config.pack import PackConfig
from oasisgen.data.description import read_description
from oasisgen.data.images import decode
from oasisgen.data.pack import pack, refuse_overlap
from oasisgen.data.phantom import write_phantoms
from oasisgen.data.sources import survey
from oasisgen.errors import UserError
from tests.conftest import one_line, png, run_job
from tests.proxy import proxy

GREY = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint8)


def fill(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(png(GREY))


@pytest.mark.parametrize("layout", ["keras_png_slices_{}", "{}", "{}/slices", "keras_png_slices_{}/a/b"])
def test_the_usual_layouts_are_understood(layout: str, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "validate", "test")):
        fill(tmp_path / layout.format(split), [f"case_00{number}_slice_{level}.nii.png" for level in (0, 31)])
    fill(tmp_path / "keras_png_slices_seg_train", ["seg_000_slice_0.nii.png", "seg_009_slice_0.nii.png"])
    (tmp_path / "README.md").write_text("beside the data")
    found = survey(PackConfig(str(tmp_path), "out"))
    slices = {
        split: [(c.case, of.level) for c in cases for of in c.slices] for split, cases in found.split_cases().items()
    }
    assert slices == {
        "train": [("000", 0), ("000", 31)],
        "validate": [("001", 0), ("001", 31)],
        "test": [("002", 0), ("002", 31)],
    }
    assert [case.slices[0].labels is not None for case in found.cases] == [True, False, False]
    assert [(unused.reason, unused.count) for unused in found.unused] == [
        ("a label map without its slice", 1),
        ("not an image", 1),
    ]
    assert found.rejected == ()


@pytest.mark.parametrize("folder", ["Val", "valid", "VALIDATION", "brains-validate", "keras_png_slices_val", "val_png"])
def test_split_folders_of_other_data_sets_are_understood(folder: str, tmp_path: Path) -> None:
    fill(tmp_path / "training", ["case_001_slice_0.nii.png"])
    fill(tmp_path / folder, ["case_002_slice_0.nii.png"])
    fill(tmp_path / "Testing", ["case_003_slice_0.nii.png"])
    fill(tmp_path / "masks_train", ["case_001_slice_0.nii.png"])
    found = survey(PackConfig(str(tmp_path), "out"))
    assert found.rejected == ()
    assert [(case.case, case.split) for case in found.cases] == [("001", "train"), ("002", "validate"), ("003", "test")]


def test_what_cannot_be_used_is_set_aside_and_named(connected: str, tmp_path: Path) -> None:
    train = tmp_path / "raw" / "train"
    fill(train, ["case_001_slice_0.nii.png", "case_001_slice_7.nii.png"])
    rgb = np.stack([GREY] * 3, -1)
    (train / "case_001_slice_1.nii.png").write_bytes(png(rgb))
    rgb[0, 0, 0] += 1
    (train / "case_001_slice_2.nii.png").write_bytes(png(rgb))
    (train / "case_001_slice_3.nii.png").write_bytes(png(GREY)[:200])
    (train / "case_001_slice_4.nii.png").write_bytes(png(np.zeros((300, 100), np.uint8)))
    (train / "case_001_slice_5.nii.png").write_bytes(png(GREY, "GIF"))
    (train / "case_001_slice_6.nii.png").write_bytes(b"no image at all")
    (train / "case_001_slice_8.nii.png").write_bytes(png(Image.fromarray(GREY).convert("RGBA").point(lambda v: v // 2)))
    (train / "case_001_slice_7.png").write_bytes(png(GREY))
    (train / "case_001_slice_512.nii.png").write_bytes(png(GREY))
    (train / "case_001_slice_9.nii.png").symlink_to(tmp_path / "nowhere")
    (train / "case_001_slice_10.nii.png").write_bytes(bytes(4_000_001))
    (train / "notes.txt").write_text("hello")
    out = tmp_path / "datasets" / "d"
    described = pack(PackConfig(str(tmp_path / "raw"), str(out)))
    assert described

    reasons = {file.file.removeprefix("train/"): file.reason for file in described.rejected}
    expected = {
        "case_001_slice_2.nii.png": "RGB with unequal channels",
        "case_001_slice_3.nii.png": "truncated or damaged",
        "case_001_slice_4.nii.png": "100 x 300 pixels do not fit into 256 x 256: give --fit crop or resize",
        "case_001_slice_5.nii.png": "not a PNG, JPEG, TIFF or BMP file",
        "case_001_slice_6.nii.png": "not a PNG, JPEG, TIFF or BMP file",
        "case_001_slice_7.png": "case 001, level 7 is also train/case_001_slice_7.nii.png: remove one",
        "case_001_slice_7.nii.png": "case 001, level 7 is also train/case_001_slice_7.png: remove one",
        "case_001_slice_9.nii.png": "leads nowhere",
        "case_001_slice_10.nii.png": "4000001 bytes: no slice takes more than 4000000",
        "case_001_slice_8.nii.png": "transparent pixels",
        "case_001_slice_512.nii.png": "level 512 is above 511",
    }
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(reason) for name, reason in expected.items()), reasons
    table = pq.read_table(out / "train" / "part-00000.parquet")  # without Ray
    assert table["level"].to_pylist() == [0, 1]
    assert all(np.array_equal(np.frombuffer(image, np.uint8), GREY.ravel()) for image in table["image"].to_pylist())
    assert table.schema.names == ["case", "subject", "level", "height", "width", "image"]
    assert read_description(str(out)) == described

    with pytest.raises(UserError, match=r"11 files rejected, train/.*: .*; fix them or drop --strict"):
        pack(PackConfig(str(tmp_path / "raw"), str(tmp_path / "strict"), strict=True))
    assert not (tmp_path / "strict" / "dataset.json").exists()
    with pytest.raises(UserError, match="11 files rejected"):  # a finished data set is no way around it
        pack(PackConfig(str(tmp_path / "raw"), str(out), strict=True))


def test_packing_again_changes_nothing_and_other_files_are_refused(connected: str, tmp_path: Path) -> None:
    fill(tmp_path / "raw" / "train", [f"case_00{case}_slice_0.nii.png" for case in range(3)])
    out = tmp_path / "d"
    first = pack(PackConfig(str(tmp_path / "raw"), str(out)))
    part = out / "train" / "part-00000.parquet"
    written = part.read_bytes(), part.stat().st_mtime_ns
    assert pack(PackConfig(str(tmp_path / "raw"), str(out))) == first
    assert (part.read_bytes(), part.stat().st_mtime_ns) == written
    (out / "dataset.json").unlink()  # as if it had been interrupted, when it had more files
    (out / "train" / "part-00007.parquet").write_bytes(b"of another source")
    assert pack(PackConfig(str(tmp_path / "raw"), str(out))) == first
    assert [file.name for file in (out / "train").iterdir()] == ["part-00000.parquet"]
    assert part.read_bytes() == written[0]
    (tmp_path / "raw" / "train" / "case_009_slice_0.nii.png").write_bytes(png(GREY))
    with pytest.raises(UserError, match="was packed from"):
        pack(PackConfig(str(tmp_path / "raw"), str(out)))


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
            pack(PackConfig(str(raw), spelling))
    linked = tmp_path / "source"
    linked.mkdir()
    (linked / "train").symlink_to(raw / "train")
    with pytest.raises(UserError, match="overlap"):
        pack(PackConfig(str(linked), str(raw / "train")))
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
    with pytest.raises(UserError, match=r"theirs holds files that oasisgen did not write \(train\): use another --out"):
        pack(PackConfig(str(tmp_path / "raw"), str(out)))
    for settings in ({"seed": 0}, {"seed": 1}):
        with pytest.raises(UserError, match="holds files that oasisgen did not write"):
            write_settings(str(out), settings)
    with pytest.raises(UserError, match="holds files that oasisgen did not write"):
        write_phantoms(str(tmp_path / "raw"), {"train": 1}, seed=0)
    assert files_below(tmp_path) == before


def test_of_its_own_folder_packing_removes_parts_only(connected: str, tmp_path: Path) -> None:
    fill(tmp_path / "raw" / "train", ["case_001_slice_0.nii.png"])
    out = tmp_path / "d"
    pack(PackConfig(str(tmp_path / "raw"), str(out)))
    (out / "dataset.json").unlink()
    (out / "train" / "part-00007.parquet").write_bytes(b"of an interrupted call")
    (out / "train" / "notes.txt").write_text("somebody's")
    pack(PackConfig(str(tmp_path / "raw"), str(out)))
    assert sorted(file.name for file in (out / "train").iterdir()) == ["notes.txt", "part-00000.parquet"]


def test_an_unusable_source_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder at .*missing"):
        survey(PackConfig(str(tmp_path / "missing"), "out"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"no folder at .*file"):
        survey(PackConfig(str(tmp_path / "file"), "out"))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("")
    with pytest.raises(UserError, match="no slices in"):
        survey(PackConfig(str(tmp_path), "out"))
    shutil.rmtree(tmp_path / "train")
    fill(tmp_path / "train", ["case_001_slice_0.nii.png"])
    fill(tmp_path / "validate", ["case_001_slice_1.nii.png"])
    with pytest.raises(UserError, match="case 001 is in train and in validate"):
        survey(PackConfig(str(tmp_path), "out"))


def test_cases_1_and_001_are_one_person(tmp_path: Path) -> None:
    fill(tmp_path / "train", ["case_1_slice_0.nii.png", "case_001_slice_1.nii.png"])
    (case,) = survey(PackConfig(str(tmp_path), "out")).cases
    assert [of.level for of in case.slices] == [0, 1]
    fill(tmp_path / "validate", ["case_01_slice_0.nii.png"])
    with pytest.raises(UserError, match=r"case 0?0?1 is in train and in validate"):
        survey(PackConfig(str(tmp_path), "out"))


def test_label_maps_under_the_names_of_the_slices_are_not_taken_for_slices(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        fill(tmp_path / "train" / kind, ["case_001_slice_0.nii.png"])
    (case,) = survey(PackConfig(str(tmp_path), "out")).cases
    assert [file.path for file in case.files] == [
        f"train/{kind}/case_001_slice_0.nii.png" for kind in ("images", "labels")
    ]
    fill(tmp_path / "train" / "other", ["case_001_slice_0.nii.png"])
    with pytest.raises(UserError, match=r"no slices in .*images/case_001_slice_0.*is also.*other/case_001_slice_0"):
        survey(PackConfig(str(tmp_path), "out"))


def test_a_file_that_was_mended_at_the_same_size_is_noticed(connected: str, tmp_path: Path) -> None:
    fill(tmp_path / "raw" / "train", ["case_001_slice_0.nii.png", "case_001_slice_1.nii.png"])
    out = str(tmp_path / "d")
    described = pack(PackConfig(str(tmp_path / "raw"), out))
    assert described
    file = tmp_path / "raw" / "train" / "case_001_slice_0.nii.png"
    os.utime(file, (1, 1))
    assert pack(PackConfig(str(tmp_path / "raw"), out)) == described  # written again, with the same content
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"files in .*raw were changed after they were packed into"):
        pack(PackConfig(str(tmp_path / "raw"), out))
    older = described.to_json()  # as an older version wrote it
    assert older.pop("source_times")
    Path(out, "dataset.json").write_text(json.dumps(older))
    assert pack(PackConfig(str(tmp_path / "raw"), out)) == replace(described, source_times=None)


@pytest.mark.slow
def test_storage_in_trouble_loses_no_slice_and_fails_the_job_only_if_it_lasts(s3: str, tmp_path: Path) -> None:
    raw, out = f"{s3}/trouble/raw", f"{s3}/trouble/packed"
    for level in range(8):
        storage.write_bytes(f"{raw}/train/case_001_slice_{level}.nii.png", png(GREY))
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        server.fault = lambda method, path: "503 SlowDown" if method == "GET" and "slice_3" in path else None
        flags = ["--source", raw, "--out", out]
        failed = run_job("pack", *flags, RAY_ADDRESS="local", AWS_MAX_ATTEMPTS="2", **server.variables)
    assert failed.returncode == 1
    assert "slice_3.nii.png: the server " in one_line(failed.stderr)
    assert not storage.exists(f"{out}/dataset.json")
    assert len(server.faults) == 2 * 2  # the client's attempts at each of two reads

    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:  # out for as long as the first read takes
        passing = iter(["503 SlowDown"] * 2)
        server.fault = lambda method, path: next(passing, None) if method == "GET" and "slice_3" in path else None
        went_on = run_job("pack", *flags, RAY_ADDRESS="local", AWS_MAX_ATTEMPTS="2", **server.variables)
    assert (went_on.returncode, len(server.faults)) == (0, 2), went_on.stderr
    description = storage.read_json(f"{out}/dataset.json")
    assert (description["splits"]["train"]["slices"], description["rejected"]) == (8, [])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_no_pixel_is_decoded_of_a_file_that_claims_too_many() -> None:
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    bomb = header + chunk(b"IDAT", zlib.compress(bytes(20_001 * 2_000))) + chunk(b"IEND", b"")
    tracemalloc.start()
    with pytest.raises(ValueError, match="too many pixels: a slice has at most 2048 x 2048"):
        decode(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_other_formats_never_reach_their_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 256 256\n%%EndComments\n"
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for data in (postscript, png(GREY, "GIF"), png(GREY, "PPM"), png(GREY, "WEBP"), png(GREY, "ICO")):
        with pytest.raises(ValueError, match="not a PNG, JPEG, TIFF or BMP file"):
            decode(data)


def test_whatever_a_file_holds_is_a_slice_or_one_reason() -> None:
    random = np.random.default_rng(0)
    header, rest = png(GREY)[:33], png(GREY)[33:]
    seeds = [header + chunk(b"iCCP", b"") + rest, header + chunk(b"iCCP", b"x\0") + rest]
    seeds += [png(GREY, kind) for kind in ("PNG", "JPEG", "TIFF")]
    seeds += [png(Image.fromarray(GREY).convert(mode)) for mode in ("RGB", "RGBA", "P", "1", "LA", "I;16")]
    reasons = Counter[str]()
    for number in range(3000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(random.integers(0, 6)):
            data[random.integers(min(len(data), 200) if number % 2 else len(data))] = random.integers(256)
        try:
            assert decode(bytes(data)).pixels.dtype == np.uint8
        except ValueError as reason:
            reasons[str(reason).partition(" (")[0]] += 1
            assert len(str(reason).splitlines()) == 1  # noqa: PT017
    assert reasons["truncated or damaged"] > 100


def test_the_real_slices_are_all_there(oasis: Path) -> None:
    found = survey(PackConfig(str(oasis), "out"))
    assert {split: sum(case.count for case in cases) for split, cases in found.split_cases().items()} == {
        "train": 9664,
        "validate": 1120,
    }
    assert len(found.split_cases()["train"]) == 302
    assert found.rejected == ()
    assert [unused.reason for unused in found.unused] == ["not an image"]
    assert all(of.labels for case in found.cases for of in case.slices)  # those of train are in a .zip
    assert [(of.name, of.value) for of in found.label_classes] == [
        ("background", 0),
        ("CSF", 85),
        ("grey matter", 170),
        ("white matter", 255),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 255), {"background": 0, "foreground": 255}),
        ((0, 2), {"background": 0, "class 1": 1, "class 2": 2}),
        ((0, 85, 170, 255), {"background": 0, "CSF": 85, "grey matter": 170, "white matter": 255}),
    ],
)
def test_the_values_of_label_maps_become_classes(
    values: tuple[int, ...], expected: dict[str, int], tmp_path: Path
) -> None:
    fill(tmp_path / "train", ["case_001_slice_0.png"])
    (tmp_path / "seg_train").mkdir()
    there = np.array(values, np.uint8)[GREY % len(values)]
    (tmp_path / "seg_train" / "seg_001_slice_0.png").write_bytes(png(there))
    found = survey(PackConfig(str(tmp_path), "out"))
    assert {of.name: of.value for of in found.label_classes} == expected
    if values == (0, 255):
        of_one_bit = png(Image.fromarray(there).convert("1"))
        (tmp_path / "seg_train" / "seg_001_slice_0.png").write_bytes(of_one_bit)
        assert survey(PackConfig(str(tmp_path), "out")).label_classes == found.label_classes


def test_label_maps_are_packed_beside_their_slices(connected: str, tmp_path: Path) -> None:
    tissues = np.array([0, 85, 170, 255], np.uint8)[GREY % 4]
    fill(tmp_path / "raw" / "train", [f"case_001_slice_{level}.png" for level in range(4)])
    for level, data in ((0, png(tissues)), (1, b"no image"), (2, png(GREY))):
        file = tmp_path / "raw" / "seg_train" / f"seg_001_slice_{level}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
    flags = ["--label-classes", "0=background,85=CSF,170=grey matter,255=white matter"]
    done = run_job("pack", "--source", str(tmp_path / "raw"), "--out", str(tmp_path / "d"), *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "done: 4 slices" in done.stdout  # a rejected label map is no slice
    described = read_description(str(tmp_path / "d"))
    assert {file.file: file.reason for file in described.rejected} == {
        "seg_train/seg_001_slice_1.png": "not a PNG, JPEG, TIFF or BMP file",
        "seg_train/seg_001_slice_2.png": "value 1 of its label map has no class: name it with --label-classes",
    }
    assert [of.name for of in described.label_classes] == ["background", "CSF", "grey matter", "white matter"]
    assert described.slices_without_labels == 3
    table = pq.read_table(tmp_path / "d" / "train" / "part-00000.parquet")
    assert table["level"].to_pylist() == [0, 1, 2, 3]
    labels = table["labels"].to_pylist()
    assert np.array_equal(np.frombuffer(labels[0], np.uint8), (GREY % 4).ravel())
    assert labels[1:] == [None] * 3
