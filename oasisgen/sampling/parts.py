"""The parts of a batch: the ids of each, and what is written of one. Its summary comes last: then it is complete."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oasisgen import storage, tables
from oasisgen.config.generate import MOST_IDS, Format
from oasisgen.config.ranges import number_ranges
from oasisgen.errors import InvalidFile
from oasisgen.lock import Lock
from oasisgen.sampling import formats
from oasisgen.sampling.ids import ids_of_levels
from oasisgen.sampling.png import decode

SUMMARY = pa.schema(
    [
        ("id", pa.int64()),
        ("level", pa.int16()),
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("ssim_real", pa.float32()),
        ("ssim_train_max", pa.float32()),
        ("nearest_case", pa.string()),
        ("nearest_level", pa.int16()),
        ("copy_ratio", pa.float32()),
        ("codes_in_use", pa.int32()),
        ("device", pa.string()),
    ]
)


def first_parts(request: dict[str, Any]) -> Iterator[np.ndarray]:
    """The ids of each part, as far as none is refused."""
    if request["ids"]:
        ids = np.array(number_ranges("ids", request["ids"], MOST_IDS))
        yield from (ids[first : first + request["part_size"]] for first in range(0, len(ids), request["part_size"]))
    else:
        yield from parts_between(request, 0, request["count"])


def parts_between(request: dict[str, Any], first: int, end: int) -> Iterator[np.ndarray]:
    """The ids of parts of the `first` to before `end` of the ids that may be asked for."""
    for start in range(first, end, request["part_size"]):
        yield ids_of_levels(request["levels"], start, min(start + request["part_size"], end))


def write_part(out: str, number: int, kind: Format, slices: pa.Table, held: Lock) -> None:
    """Write what belongs to a part whose PNGs are written, its summary last. Raises LockLost."""
    for name in SUMMARY.names:
        if name not in slices.column_names:  # not measured
            slices = slices.append_column(SUMMARY.field(name), pa.nulls(len(slices), SUMMARY.field(name).type))
    was_refused = pc.not_equal(slices["refused"], "")
    rejected, kept = slices.filter(was_refused), slices.filter(pc.invert(was_refused))
    formats.write_part(out, number, kind, kept)
    if len(rejected):
        reasons = rejected.select([*SUMMARY.names, "refused"]).drop_columns(["file", "sha256"])
        tables.write(_rejected_uri(out, number), reasons, len(rejected))
    held.renew()  # what follows may be another job's if this one has lost the folder
    _remove_leftovers(out, number, kind, kept, rejected)
    summary = tables.to_bytes(kept.select(SUMMARY.names).cast(SUMMARY), max(1, len(kept)))
    held.commit(part_uri(out, number), summary)


def _remove_leftovers(out: str, number: int, kind: Format, kept: pa.Table, rejected: pa.Table) -> None:
    """Remove what an earlier attempt at this part wrote and this one does not have.

    That attempt may have refused other slices, if it ran on another kind of device. Only names of this part's own ids
    are removed.
    """
    leftovers = [] if len(rejected) else [_rejected_uri(out, number)]
    if kind == "png":
        leftovers += [storage.join(out, formats.slice_path(refused)) for refused in rejected["id"].to_pylist()]
    elif not len(kept):
        leftovers.append(storage.join(out, formats.part_path(number, kind)))

    def remove(uri: str) -> None:
        with suppress(FileNotFoundError):
            storage.remove(uri)

    with ThreadPoolExecutor(formats.UPLOADS) as pool:
        list(pool.map(remove, leftovers))


def _rejected_uri(out: str, number: int) -> str:
    return storage.join(out, "rejected", f"part-{number:05d}.parquet")


def part_uri(out: str, number: int) -> str:
    """A part's summary: where it is, the part is complete."""
    return storage.join(out, "summary", f"part-{number:05d}.parquet")


def entry_of(out: str, number: int, tried: int) -> dict[str, Any]:
    """What the manifest says of a part of `tried` ids."""
    data = storage.read_bytes(part_uri(out, number))
    kept = len(tables.parse(data, SUMMARY, part_uri(out, number), ["id"]))
    digest = hashlib.sha256(data).hexdigest()
    return {"name": part_uri("", number), "slices": kept, "rejected": tried - kept, "sha256": digest}


def read_images(out: str, kind: Format, slices: pa.Table) -> list[np.ndarray]:
    """(256, 256) uint8 of each row of a summary, of which `id` and `file` are used.

    Raises InvalidFile, which names the slice and the part to make again, where one is missing or is no such PNG.
    """
    images = {}
    for number, png in formats.read_pngs(out, kind, slices):
        try:
            if png is None:
                raise ValueError("missing, or its file is damaged")
            images[number] = decode(png)
        except ValueError as reason:
            remedy = f"remove {_part_of(out, number)} and run the command again"
            raise InvalidFile(f"{out}: slice {number} is not what was made ({reason}): {remedy}") from None
    return [images[number] for number in slices["id"].to_pylist()]  # not in the order of their files


def _part_of(out: str, number: int) -> str:
    """The summary of the part that a slice belongs to."""
    folder = storage.join(out, "summary")
    uris = [storage.join(folder, name) for name, _ in storage.list_files(folder)]
    return next((uri for uri in uris if number in tables.read(uri, SUMMARY, ["id"])["id"].to_pylist()), folder)
