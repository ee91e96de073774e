"""The parts of a batch. A part is complete once its summary exists, which is written last."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oasisgen import storage, tables
from oasisgen.config.generate import Format
from oasisgen.errors import InvalidFile
from oasisgen.lock import Lock
from oasisgen.sampling import formats
from oasisgen.sampling.manifest import BatchPart
from oasisgen.sampling.png import decode_png

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
READERS = 16  # parts that are read at the same time
PART_NAME = re.compile(r"part-(\d{5}|[1-9]\d{5,})\.parquet")
LABELS = [pa.field("labels_file", pa.string()), pa.field("labels_sha256", pa.string())]


def summary_schema(labels: bool) -> pa.Schema:
    """The columns of a summary of a batch with label maps, or without."""
    return pa.schema([*SUMMARY, *LABELS]) if labels else SUMMARY


def commit_part(out: str, number: int, kind: Format, slices: pa.Table, held: Lock) -> None:
    """Complete a part whose PNGs are written: its other files, and finally its summary. Raises LockLost."""
    schema = summary_schema("labels_sha256" in slices.column_names)
    for field in schema:
        if field.name not in slices.column_names:  # not measured
            slices = slices.append_column(field, pa.nulls(len(slices), field.type))
    was_refused = pc.not_equal(slices["refused"], "")
    rejected, kept = slices.filter(was_refused), slices.filter(pc.invert(was_refused))
    formats.write_part_file(out, number, kind, kept)
    if len(rejected):
        reasons = rejected.select([*SUMMARY.names, "refused"]).drop_columns(["file", "sha256"])
        tables.write(_rejected_uri(out, number), reasons, len(rejected))
    held.renew()  # before anything is removed: another job may have taken over the folder
    _remove_leftovers(out, number, kind, kept, rejected)
    summary = tables.to_bytes(kept.select(schema.names).cast(schema), max(1, len(kept)))
    held.commit(part_uri(out, number), summary)


def _remove_leftovers(out: str, number: int, kind: Format, kept: pa.Table, rejected: pa.Table) -> None:
    """Remove files that an earlier attempt at this part wrote and this one did not.

    The earlier attempt may have rejected other slices if it ran on another kind of device. Only files of this part's
    ids are removed.
    """
    leftovers = [] if len(rejected) else [_rejected_uri(out, number)]
    if kind == "png":
        paths = [formats.slice_path] + ([formats.labels_path] if "labels_file" in kept.column_names else [])
        leftovers += [storage.join(out, path(refused)) for refused in rejected["id"].to_pylist() for path in paths]
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
    """The summary of a part: once it exists, the part is complete."""
    return storage.join(out, "summary", f"part-{number:05d}.parquet")


def complete_parts(out: str) -> set[int]:
    """The numbers of the complete parts, from one listing."""
    found = (PART_NAME.fullmatch(name) for name in storage.list_names(storage.join(out, "summary")))
    return {int(match[1]) for match in found if match}


def entry_of(out: str, number: int, tried: int, labels: bool = False) -> BatchPart:
    """The manifest's entry for a complete part of `tried` ids, of a batch with label maps or without."""
    data = storage.read_bytes(part_uri(out, number))
    kept = len(tables.parse(data, summary_schema(labels), part_uri(out, number), ["id"]))
    return BatchPart(part_uri("", number), kept, tried - kept, hashlib.sha256(data).hexdigest())


def read_listed(out: str, part: BatchPart, columns: list[str]) -> pa.Table:
    """Some columns of a part's summary, of a batch with label maps. Raises InvalidFile if it is not the one that the
    manifest lists.
    """
    uri = storage.join(out, part.name)
    with suppress(FileNotFoundError):
        data = storage.read_bytes(uri)
        if hashlib.sha256(data).hexdigest() == part.sha256:
            return tables.parse(data, summary_schema(True), uri, columns)
    raise InvalidFile(f"{uri} is missing or changed since the batch was finished: see jobs/generate.py --verify {out}")


def read_images(out: str, kind: Format, slices: pa.Table, size: tuple[int, int]) -> list[np.ndarray]:
    """The image, uint8 of `size` (H, W), of each row of a summary; uses its columns `id`, `file` and `labels_file`.

    Raises InvalidFile, which names the slice and the part to make again, where an image is missing or damaged.
    """
    return _read_arrays(out, kind, slices, size, "png")


def read_label_maps(out: str, kind: Format, slices: pa.Table, size: tuple[int, int]) -> list[np.ndarray]:
    """The label map of each row, of a batch with label maps. As `read_images`."""
    return _read_arrays(out, kind, slices, size, "labels")


def _read_arrays(
    out: str, kind: Format, slices: pa.Table, size: tuple[int, int], what: formats.What
) -> list[np.ndarray]:
    arrays, mode = {}, "L" if what == "png" else "P"
    for number, png in formats.read_pngs(out, kind, slices, what):
        try:
            if png is None:
                raise ValueError("missing, or its file is damaged")
            arrays[number] = decode_png(png, size, mode)
        except ValueError as reason:
            remedy = f"remove {_part_of(out, number, 'labels_file' in slices.column_names)} and run the command again"
            raise InvalidFile(f"{out}: slice {number} was changed since it was made ({reason}): {remedy}") from None
    return [arrays[number] for number in slices["id"].to_pylist()]  # in the order of the rows


def _part_of(out: str, number: int, labels: bool) -> str:
    """The summary of the part that a slice belongs to."""
    folder, schema = storage.join(out, "summary"), summary_schema(labels)
    uris = [storage.join(folder, name) for name, _ in storage.list_files(folder)]
    return next((uri for uri in uris if number in tables.read(uri, schema, ["id"])["id"].to_pylist()), folder)
