"""How the slices of a batch are stored: one PNG each, or the PNGs of a part in one Parquet file or tar archive.

Their label maps, if the batch has them, lie beside them: a PNG each, or a column of the Parquet file, or entries of the
archive.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
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
            about = json.dumps({"id": row["id"], "level": row["level"]}).encode()
            labels = {"labels.png": row["labels"]} if "labels" in row else {}
            for ending, data in {"png": row["png"], **labels, "json": about}.items():
                entry = tarfile.TarInfo(f"{row['id']:010d}.{ending}")  # fixed mtime and owner: equal bytes
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def read_pngs(uri: str, kind: Format, slices: pa.Table, what: What = "png") -> Iterator[tuple[int, bytes | None]]:
    """(id, PNG) of some rows of a summary, `id`, `file` and, if the batch has label maps, `labels_file`.

    The PNGs are those of the slices or, with `what` "labels", of their label maps; None where one is missing or
    unreadable.
    """
    column = "file" if what == "png" else "labels_file"
    if kind == "png":
        with ThreadPoolExecutor(UPLOADS) as pool:
            pngs = pool.map(_read, [storage.join(uri, file) for file in slices[column].to_pylist()])
            yield from zip(slices["id"].to_pylist(), pngs, strict=True)
        return
    schema = PAIRS if "labels_file" in slices.column_names else PNGS
    for file in slices[column].unique().to_pylist():
        wanted = slices.filter(pc.equal(slices[column], file))["id"].to_pylist()
        data, there = _read(storage.join(uri, file)), {}
        with suppress(InvalidFile, tarfile.TarError, ValueError):  # an unreadable file counts as missing
            there = dict(_unpack(data or b"", kind, schema, what))
        yield from ((number, there.get(number)) for number in wanted)


def _read(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def _unpack(data: bytes, kind: Format, schema: pa.Schema, what: What) -> Iterator[tuple[int, bytes]]:
    if kind == "parquet":
        table = tables.parse(data, schema, "the part", ["id", what])
        yield from zip(table["id"].to_pylist(), table[what].to_pylist(), strict=True)
        return
    wanted = "png" if what == "png" else "labels.png"
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:  # not compressed
        for entry in archive:
            name, _, ending = entry.name.partition(".")
            if ending == wanted and (stream := archive.extractfile(entry)):
                yield int(name), stream.read()
