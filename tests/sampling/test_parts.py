"""A part that is made again, and refuses other slices than it did before: another kind of device may see it so."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from oasisgen import storage, tables
from oasisgen.config.generate import Format
from oasisgen.data.description import LabelClass
from oasisgen.errors import InvalidFile, UserError
from oasisgen.lock import lock
from oasisgen.sampling.formats import SliceWriter, What, labels_path, part_path, read_pngs, slice_path, write_part_file
from oasisgen.sampling.manifest import Manifest
from oasisgen.sampling.parts import (
    commit_part,
    complete_parts,
    entry_of,
    part_uri,
    read_images,
    read_label_maps,
    summary_schema,
)
from oasisgen.sampling.png import PngEncoder, decode_png
from oasisgen.sampling.verify import _check, verify
from tests.conftest import requested

IDS = [3, 10_000, 10_001]


def make(uri: str, kind: Format, refused: set[int], part: int = 0, labels: bool = False) -> pa.Table:
    """The slices of a part as the pipeline leaves them: PNGs are written, the part is not yet complete."""
    batch = {
        "id": np.array(IDS) + 100 * part,
        "level": np.array(IDS) % 32,
        "part": np.full(3, part),
        "image": np.random.default_rng(part).integers(0, 256, (3, 256, 256), np.uint8),
        "codes_in_use": np.array([5, 6, 7]),
        "device": np.array(["cpu"] * 3),
        "refused": np.array(["a copy" if number in refused else "" for number in IDS]),
    }
    if labels:
        batch["labels"] = np.random.default_rng(part).integers(0, 3, (3, 256, 256), np.uint8)
    written = SliceWriter(uri, kind)(PngEncoder("abc", 5, ("none", "a", "b"))(batch))
    return pa.table({name: list(values) for name, values in written.items()})


def finish(uri: str, kind: Format, parts: int, labels: bool = False) -> Manifest:
    """Write the manifest, and read everything back."""
    entries = tuple(entry_of(uri, number, len(IDS), labels) for number in range(parts))
    classes = tuple(LabelClass(name, value) for value, name in enumerate(("none", "a", "b"))) if labels else ()
    manifest = Manifest(verdict="released", request=requested(format=kind, label_classes=classes), parts=entries)
    storage.write_text(f"{uri}/manifest.json", json.dumps(manifest.to_json()))
    return verify(uri)


@pytest.mark.parametrize("kind", ["png", "parquet", "webdataset"])
def test_what_an_earlier_attempt_left_of_a_part_is_gone_once_it_is_complete(
    kind: Format, place: str, connected: str
) -> None:
    uri = f"{place}/batch"
    with lock(uri) as held:
        for part in (0, 1, 2):
            commit_part(uri, part, kind, make(uri, kind, {3}, part), held)
            storage.remove(part_uri(uri, part))  # the job was killed right before it
        assert complete_parts(uri) == set()
        commit_part(uri, 0, kind, make(uri, kind, {10_000}), held)
        assert complete_parts(uri) == {0}
        commit_part(uri, 1, kind, make(uri, kind, set(), 1), held)
        commit_part(uri, 2, kind, make(uri, kind, set(IDS), 2), held)  # all are refused
        finish(uri, kind, 3)
    assert complete_parts(uri) == {0, 1, 2}
    listed = sorted(name for name, _ in storage.list_files(f"{uri}/rejected"))
    assert listed == ["part-00000.parquet", "part-00002.parquet"]
    if kind == "png":
        names = {int(name.rpartition("/")[2].removesuffix(".png")) for name, _ in storage.list_files(f"{uri}/slices")}
        assert names == {3, 10_001, 103, 10_100, 10_101}


@pytest.mark.parametrize("kind", ["png", "parquet", "webdataset"])
def test_images_of_rows_come_in_their_order_and_a_damaged_file_is_named_with_its_part(place: str, kind: Format) -> None:
    parts = [make(place, kind, set(), part) for part in range(2)]
    with lock(place) as held:
        for number, part in enumerate(parts):
            commit_part(place, number, kind, part, held)
    rows = pa.concat_tables(parts).select(["id", "file"]).take([5, 0, 3, 2])
    pixels = [np.random.default_rng(part).integers(0, 256, (3, 256, 256), np.uint8) for part in range(2)]
    expected = [pixels[1][2], pixels[0][0], pixels[1][0], pixels[0][2]]
    assert all(map(np.array_equal, read_images(place, kind, rows, (256, 256)), expected))

    name = slice_path(103) if kind == "png" else part_path(1, kind)
    whole = storage.read_bytes(f"{place}/{name}")
    for damaged in (None, whole[: len(whole) // 3]):
        storage.remove(f"{place}/{name}") if damaged is None else storage.write_bytes(f"{place}/{name}", damaged)
        with pytest.raises(InvalidFile, match=r"slice \d+ was changed .*: remove .*/summary/part-00001\.parquet and"):
            read_images(place, kind, rows.take([0, 2]), (256, 256))


@pytest.mark.parametrize("kind", ["png", "parquet", "webdataset"])
def test_a_label_map_that_is_touched_does_not_verify(place: str, kind: Format, connected: str) -> None:
    uri = f"{place}/batch"
    with lock(uri) as held:
        table = make(uri, kind, {10_000}, labels=True)
        commit_part(uri, 0, kind, table, held)
    assert finish(uri, kind, 1, labels=True).request.label_classes
    rows = table.select(["id", "file", "labels_file"])
    expected = np.random.default_rng(0).integers(0, 3, (3, 256, 256), np.uint8)
    assert np.array_equal(read_label_maps(uri, kind, rows.take([2]), (256, 256))[0], expected[2])

    other = make(f"{place}/other", kind, {10_000}, part=1, labels=True)
    if kind == "png":
        path, strange = f"{uri}/{labels_path(10_001)}", f"{uri}/{labels_path(5)}"
        storage.write_bytes(path, storage.read_bytes(f"{place}/other/{labels_path(10_101)}"))
        with pytest.raises(UserError, match=r"the label map of slice 10001 in labels/1/.* is changed: generate it"):
            verify(uri)
        storage.remove(path)
        with pytest.raises(UserError, match="the label map of slice 10001 is missing from labels/1/"):
            verify(uri)
        storage.write_bytes(strange, b"")
        with pytest.raises(UserError, match=r"missing from .*; labels/0/0000000005\.png belongs to no part"):
            verify(uri)
    else:
        maps = other["labels_png"].combine_chunks()
        write_part_file(uri, 0, kind, table.drop_columns(["labels_png"]).append_column("labels_png", maps).take([0, 2]))
        with pytest.raises(UserError, match=r"the label map of slice 3 in slices/part-00000\..* is changed"):
            verify(uri)


def faults(uri: str, kind: Format, labels: bool = True) -> list[str]:
    """The faults of part 0, whose summary is the one that the manifest names."""
    digest = hashlib.sha256(storage.read_bytes(part_uri(uri, 0))).hexdigest()
    found: list[str] = _check({"name": part_uri("", 0), "sha256": digest}, uri, kind, labels)["faults"]
    return found


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_part_file_with_other_levels_or_more_slices_than_its_summary_is_named(place: str, kind: Format) -> None:
    table, more = (make(place, kind, {10_000}, part, labels=True) for part in (0, 1))
    with lock(place) as held:
        commit_part(place, 0, kind, table, held)
    assert faults(place, kind) == []
    kept, file = table.take([0, 2]), part_path(0, kind)
    levels = kept.set_column(kept.column_names.index("level"), "level", pa.array([3, 31]))
    write_part_file(place, 0, kind, levels)
    assert faults(place, kind) == [f"the level of slice 10001 in {file} is changed"]
    write_part_file(place, 0, kind, pa.concat_tables([kept, more.take([1]), kept.take([0])]))
    assert faults(place, kind) == [f"{strange} in {file} is not part of the batch" for strange in ("10100", "3")]
    write_part_file(place, 0, kind, kept.take([1]))
    missing = [f"{each} is missing from {file}" for each in ("slice 3", "the label map of slice 3")]
    assert faults(place, kind) == missing
    for damaged in (b"", b"x" * 5000):
        storage.write_bytes(f"{place}/{file}", damaged)
        assert faults(place, kind) == [*missing, *(fault.replace("3", "10001", 1) for fault in missing)]
    storage.remove(f"{place}/{file}")
    assert len(faults(place, kind)) == 4


def test_what_is_no_slice_in_an_archive_is_named(tmp_path: Path) -> None:
    place = str(tmp_path)
    with lock(place) as held:
        commit_part(place, 0, "webdataset", make(place, "webdataset", set()), held)
    with tarfile.open(tmp_path / part_path(0, "webdataset"), "a") as archive:
        for name in ("readme.txt", "3.png", "0000000003.cls", "a\nb\udcff"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("0000000099.png")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(link)
    names = ("readme.txt", "3.png", "0000000003.cls", "a\nb\udcff", "0000000099.png")
    inside = f"in {part_path(0, 'webdataset')} is not part of the batch"
    assert faults(place, "webdataset", labels=False) == [f"{name!r} {inside}" for name in names]


@pytest.mark.parametrize("kind", ["png", "parquet", "webdataset"])
def test_no_summary_leads_out_of_its_batch(kind: Format, tmp_path: Path) -> None:
    """Nor to another place in it: every file has its place by the id or the part."""
    place, secret = str(tmp_path / "batch"), str(tmp_path / "secret")
    for uri in (place, secret):
        with lock(uri) as held:
            commit_part(uri, 0, kind, make(uri, kind, set(), labels=True), held)
    summary = tables.read(part_uri(place, 0), summary_schema(True))
    own = summary["file"][0].as_py()
    columns: dict[str, What] = {"file": "png", "labels_file": "labels"}
    for path in (f"{secret}/{own}", f"../secret/{own}", f"slices/../{own}", f"./{own}", "slices/0/0000000099.png", ""):
        for column, what in columns.items():
            files = pa.array([path, *summary[column].to_pylist()[1:]])
            changed = summary.set_column(summary.column_names.index(column), column, files)
            assert [png is None for _, png in read_pngs(place, kind, changed, what)] == [True, False, False]
            tables.write(part_uri(place, 0), changed, 3)
            called = "slice 3" if what == "png" else "the label map of slice 3"
            assert faults(place, kind) == [f"{called} is said to be in {path!r}"]
    if kind != "png":
        other = part_path(1, kind)
        files = pa.array([other] * 3)
        tables.write(part_uri(place, 0), summary.set_column(2, "file", files), 3)
        assert faults(place, kind)[0] == f"slice 3 is said to be in {other!r}"


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_only_a_whole_png_of_the_size_and_mode_of_a_slice_is_decoded() -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8))
    whole = saved(grey)
    assert np.array_equal(decode_png(whole, (256, 256)), np.asarray(grey))
    foreign = [b"", b"text", saved(grey, "JPEG"), saved(grey.crop((0, 0, 255, 256))), saved(grey.convert("RGB"))]
    for data in [*foreign, *(whole[:end] for end in range(0, len(whole) - 12, len(whole) // 40))]:
        with pytest.raises(ValueError, match=r"pixels of mode|truncated or no PNG") as raised:
            decode_png(data, (256, 256))
        assert "\n" not in str(raised.value)
