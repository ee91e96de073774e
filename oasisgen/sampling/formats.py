"""How the slices of a batch lie in storage: a PNG each, or the PNGs of a part in one Parquet file or tar archive."""

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oasisgen import storage, tables
from oasisgen.config.generate import Format
from oasisgen.errors import InvalidFile

SLICES_PER_FOLDER = 10_000
UPLOADS = 16  # of one task at the same time: an object store answers many at once
PNGS = pa.schema([("id", pa.int64()), ("level", pa.int64()), ("png", pa.binary())])  # a part's Parquet file
ENDINGS = {"parquet": "parquet", "webdataset": "tar"}  # of a part's file


def slice_path(number: int) -> str:
    """Where a slice lies below its batch, as a PNG of its own."""
    return f"slices/{number // SLICES_PER_FOLDER}/{number:010d}.png"


def part_path(part: int, kind: Format) -> str:
    """Where the slices of a part lie below their batch, in one file."""
    return f"slices/part-{part:05d}.{ENDINGS[kind]}"


@dataclass(frozen=True)
class SliceWriter:
    """Adds `file`, the path of each slice; in format `png` it writes the PNG there and drops the column."""

    uri: str
    kind: Format

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`id`, `part`, `png`, `refused` … -> the same rows. PNGs with a reason in `refused` are not written."""
        if self.kind != "png":
            files = [part_path(part, self.kind) for part in batch["part"].tolist()]
            return batch | {"file": np.array(files)}
        files = [slice_path(number) for number in batch["id"].tolist()]
        kept = [(file, png) for file, png, why in zip(files, batch["png"], batch["refused"], strict=True) if not why]
        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(lambda one: storage.write_bytes(storage.join(self.uri, one[0]), one[1]), kept))
        return {name: values for name, values in batch.items() if name != "png"} | {"file": np.array(files)}


def write_part_file(uri: str, part: int, kind: Format, slices: pa.Table) -> None:
    """Write the file that holds a part's slices: `id`, `level`, `png`. Equal slices give equal bytes.

    Format `png` has no such file, and neither has a part without slices.
    """
    if not len(slices):
        return
    if kind == "parquet":
        tables.write(storage.join(uri, part_path(part, kind)), slices.select(PNGS.names).cast(PNGS), len(slices))
    elif kind == "webdataset":
        storage.write_bytes(storage.join(uri, part_path(part, kind)), _tar(slices))


def _tar(slices: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for row in slices.select(["id", "level", "png"]).to_pylist():
            about = json.dumps({"id": row["id"], "level": row["level"]}).encode()
            for ending, data in (("png", row["png"]), ("json", about)):
                entry = tarfile.TarInfo(f"{row['id']:010d}.{ending}")  # fixed mtime and owner: equal bytes
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def read_pngs(uri: str, kind: Format, slices: pa.Table) -> Iterator[tuple[int, bytes | None]]:
    """(id, PNG) of some rows of a summary, `id` and `file`; None where a PNG is missing or unreadable."""
    if kind == "png":
        with ThreadPoolExecutor(UPLOADS) as pool:
            pngs = pool.map(_read, [storage.join(uri, file) for file in slices["file"].to_pylist()])
            yield from zip(slices["id"].to_pylist(), pngs, strict=True)
        return
    for file in slices["file"].unique().to_pylist():
        wanted = slices.filter(pc.equal(slices["file"], file))["id"].to_pylist()
        data, there = _read(storage.join(uri, file)), {}
        with suppress(InvalidFile, tarfile.TarError, ValueError):  # an unreadable file counts as missing
            there = dict(_unpack(data or b"", kind))
        yield from ((number, there.get(number)) for number in wanted)


def _read(uri: str) -> bytes | None:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        return None


def _unpack(data: bytes, kind: Format) -> Iterator[tuple[int, bytes]]:
    if kind == "parquet":
        table = tables.parse(data, PNGS, "the part", ["id", "png"])
        yield from zip(table["id"].to_pylist(), table["png"].to_pylist(), strict=True)
        return
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:  # not compressed
        for entry in archive:
            name, _, ending = entry.name.partition(".")
            if ending == "png" and (stream := archive.extractfile(entry)):
                yield int(name), stream.read()
