"""A part that is made again, and refuses other slices than it did before: another kind of device may see it so."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from oasisgen import storage
from oasisgen.config.generate import Format
from oasisgen.data.description import LabelClass
from oasisgen.errors import InvalidFile, UserError
from oasisgen.lock import lock
from oasisgen.sampling.formats import SliceWriter, labels_path, part_path, slice_path, write_part_file
from oasisgen.sampling.manifest import Manifest
from oasisgen.sampling.parts import commit_part, complete_parts, entry_of, part_uri, read_images, read_label_maps
from oasisgen.sampling.png import PngEncoder, decode_png
from oasisgen.sampling.verify import verify
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
