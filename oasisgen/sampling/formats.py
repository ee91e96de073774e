"""How the slices of a batch are stored: one PNG each, or the PNGs of a part in one Parquet file or tar archive.

Their label maps, if the batch has them, lie beside them: a PNG each, or a column of the Parquet file, or entries of the
archive.
"""

import io
import json
import re
import tarfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oasisgen import storage, tables
from oasisgen.config.generate import Format
from oasisgen.errors import InvalidFile

SLICES_PER_FOLDER = 10_000
UPLOADS = 16  # of one task at the same time: an object store serves many requests in parallel
PNGS = pa.schema([("id", pa.int64()), ("level", pa.int64()), ("png", pa.binary())])  # a part's Parquet file
PAIRS = PNGS.append(pa.field("labels", pa.binary()))  # that of a batch with label maps: also a PNG
What = Literal["png", "labels"]
ENDINGS = {"parquet": "parquet", "webdataset": "tar"}  # of a part's file
Content = tuple[int | str, str, bytes | None]  # id, column and value
COLUMNS = {"png": "png", "labels.png": "labels", "json": "level"}  # ending of an archive's entry -> column in Parquet
ENTRY = re.compile(r"(\d{10}|[1-9]\d{10,18})\.(.+)")
PART_FILE = re.compile(r"slices/part-\d{5,}\.(parquet|tar)")
UNREADABLE = InvalidFile, tarfile.TarError, ValueError  # what reading a damaged file of a part raises


def slice_path(number: int) -> str:
    """Path of a slice's own PNG, relative to its batch."""
    return _png_path("slices", number)


def labels_path(number: int) -> str:
    """Path of the PNG of a slice's label map, relative to its batch."""
    return _png_path("labels", number)


def _png_path(folder: str, number: int) -> str:
    return f"{folder}/{number // SLICES_PER_FOLDER}/{number:010d}.png"


def part_path(part: int, kind: Format) -> str:
    """Path of the file that holds all slices of a part, relative to the batch."""
    return f"slices/part-{part:05d}.{ENDINGS[kind]}"


def path_of(kind: Format, what: What, number: int, part: int) -> str:
    """Path of the file that holds a slice of a part, or its label map, relative to the batch."""
    if kind != "png":
        return part_path(part, kind)
    return slice_path(number) if what == "png" else labels_path(number)


@dataclass(frozen=True)
class SliceWriter:
    """Adds `file`, the path of each slice, and `labels_file`, that of its label map, if there is a column `labels_png`.

    In format `png` it writes the PNGs there and drops their columns.
    """

    uri: str
    kind: Format

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`id`, `part`, `png`, `refused` … -> the same rows. PNGs with a reason in `refused` are not written."""
        paths = {"png": ("file", slice_path), "labels_png": ("labels_file", labels_path)}
        paths = {column: of for column, of in paths.items() if column in batch}
        if self.kind != "png":
            files = np.array([part_path(part, self.kind) for part in batch["part"].tolist()])
            return batch | {name: files for name, _ in paths.values()}
        rows = {name: values for name, values in batch.items() if name not in paths}
        for column, (name, path_of) in paths.items():
            rows[name] = np.array([path_of(number) for number in batch["id"].tolist()])
            self._write(rows[name], batch[column], batch["refused"])
        return rows

    def _write(self, files: np.ndarray, pngs: np.ndarray, refused: np.ndarray) -> None:
        kept = [(file, png) for file, png, why in zip(files, pngs, refused, strict=True) if not why]
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(lambda one: storage.write_bytes(storage.join(self.uri, one[0]), one[1]), kept))


def write_part_file(uri: str, part: int, kind: Format, slices: pa.Table) -> None:
    """Write the file that holds a part's slices: `id`, `level`, `png`, perhaps `labels_png`.

    Equal slices give equal bytes. Format `png` has no such file, and neither has a part without slices.
    """
    if kind == "png" or not len(slices):
        return
    schema = PNGS
    if "labels_png" in slices.column_names:
        schema, slices = PAIRS, slices.append_column("labels", slices["labels_png"])
    table = slices.select(schema.names)
    if kind == "parquet":
        tables.write(storage.join(uri, part_path(part, kind)), table.cast(schema), len(slices))
    else:
        storage.write_bytes(storage.join(uri, part_path(part, kind)), _tar(table))


def _tar(slices: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row in slices.to_pylist():
            labels = {"labels.png": row["labels"]} if "labels" in row else {}
            for ending, data in {"png": row["png"], **labels, "json": about(row["id"], row["level"])}.items():
                entry = tarfile.TarInfo(f"{row['id']:010d}.{ending}")  # fixed mtime and owner: equal bytes
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def about(number: int, level: int) -> bytes:
    """What an archive says of a slice."""
    return json.dumps({"id": number, "level": level}).encode()


def read_pngs(uri: str, kind: Format, slices: pa.Table, what: What = "png") -> Iterator[tuple[int, bytes | None]]:
    """(id, PNG) of some rows of a summary, `id`, `file` and, if the batch has label maps, `labels_file`.

    The PNGs are those of the slices or, with `what` "labels", of their label maps; None where one is missing or
    unreadable, or would lie in a file that is not for slices of this batch.
    """
    column = "file" if what == "png" else "labels_file"
    numbers = slices["id"].to_pylist()
    if kind == "png":
        files = [
            file if file == path_of(kind, what, number, 0) else None
            for number, file in zip(numbers, slices[column].to_pylist(), strict=True)
        ]
        with ThreadPoolExecutor(UPLOADS) as pool:
            yield from zip(numbers, pool.map(lambda file: _read(uri, file), files), strict=True)
        return
    labels = "labels_file" in slices.column_names
    for file in slices[column].unique().to_pylist():
        wanted = slices.filter(pc.equal(slices[column], file))["id"].to_pylist()
        data, there = _read(uri, file if PART_FILE.fullmatch(file or "") else None), {}
        with suppress(*UNREADABLE):  # an unreadable file counts as missing
            there = {number: png for number, _, png in unpack(data or b"", kind, labels, [what])}
        yield from ((number, there.get(number)) for number in wanted)


def _read(uri: str, file: str | None) -> bytes | None:
    """The bytes of a file of a batch; None if it is missing."""
    try:
        return storage.read_bytes(storage.join(uri, file)) if file else None
    except FileNotFoundError:
        return None


def unpack(
    data: bytes, kind: Format, labels: bool, columns: Collection[str] = ("png", "labels", "level")
) -> Iterator[Content]:
    """What the file of a part, with label maps or without, holds in some columns: of `level`, what `about` says.

    An entry of an archive that is not of a slice has its name instead of an id. Raises UNREADABLE.
    """
    if kind == "parquet":
        schema = PAIRS if labels else PNGS
        columns = [name for name in columns if name in schema.names]
        table = tables.parse(data, schema, "the part", ["id", *columns])
        ids = table["id"].to_pylist()
        for name in columns:
            values = table[name].to_pylist()
            yield from zip(ids, repeat(name), map(about, ids, values) if name == "level" else values, strict=False)
        return
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:  # not compressed
        for entry in archive:
            found = ENTRY.fullmatch(entry.name)
            column = COLUMNS.get(found[2]) if found and entry.isreg() else None
            if not found or not column:
                yield entry.name, "", None
            elif column in columns and (stream := archive.extractfile(entry)):
                yield int(found[1]), column, stream.read()
