"""Verify that a batch is complete and unchanged."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from oasisgen import cluster, disk, storage, tables
from oasisgen.config.generate import Format
from oasisgen.errors import UserError
from oasisgen.sampling import formats
from oasisgen.sampling.manifest import Manifest, read_finished
from oasisgen.sampling.parts import PART_NAME, part_uri, summary_schema

SHOWN = 3  # faults that the message lists, at most
FILES = "file", "labels_file"  # the columns of a summary that name files; the second only with label maps
DIGESTS = "sha256", "labels_sha256"  # those of the PNGs in them
CALLED: dict[str, str] = {"png": "slice", "labels": "the label map of slice", "level": "the level of slice"}


def verify(uri: str) -> Manifest:
    """Read every byte of the batch at `uri` and compare it with its digests; returns the manifest. Needs Ray.

    Raises UserError if the batch is not finished, if a part or slice is missing or changed, and if a file belongs to no
    part.
    """
    uri = storage.absolute(uri)
    manifest = read_finished(uri)
    parts = ray.data.from_items(list(map(asdict, manifest.parts)), override_num_blocks=max(1, len(manifest.parts)))
    request = manifest.request
    labels = bool(request.label_classes)
    check = partial(_check, uri=uri, kind=request.format, labels=labels)
    shown, count, named, whole = list[str](), 0, Counter[str](), True
    for part in parts.map(check, **cluster.tasks()).iter_rows():
        shown += part["faults"][: SHOWN - len(shown)]
        count += len(part["faults"])
        whole &= bool(part["folders"])
        named.update(dict(zip(part["folders"], map(int, part["digests"]), strict=True)))
    for stray in _strays(uri, manifest, named) if whole else ():
        shown += [f"{stray} belongs to no part"][: SHOWN - len(shown)]
        count += 1
    if count:
        more = f", and {count - SHOWN} more" if count > SHOWN else ""
        raise UserError(
            f"batch {uri} does not match its manifest: {'; '.join(shown)}{more}: generate it again elsewhere"
        )
    return manifest


def digests_of(files: Iterable[str]) -> Counter[str]:
    """For each folder, the sum of the digests of its files' names: the same in whatever order and pieces they come."""
    sums = Counter[str]()
    for file in files:
        sums[file.rpartition("/")[0]] += int.from_bytes(hashlib.blake2b(file.encode(), digest_size=5).digest())
    return sums


def _strays(uri: str, manifest: Manifest, named: Counter[str]) -> list[str]:
    """The files that no part names. `named` has the digests of those that the parts name.

    The names of one folder are in memory, and those of folders that hold something else than the parts say.
    """
    suspects: dict[str, None] = {}
    for files in _stored_files(uri):
        sums = digests_of(files)
        suspects |= {file: None for file in files if sums[file.rpartition("/")[0]] != named[file.rpartition("/")[0]]}
    labels = bool(manifest.request.label_classes)
    for part in manifest.parts if suspects else ():
        slices = tables.read(storage.join(uri, part.name), summary_schema(labels), list(FILES[: 1 + labels]))
        for file in (part.name, *_files(slices)):
            suspects.pop(file, None)
    return list(suspects)


def _stored_files(uri: str) -> Iterator[list[str]]:
    """The files of a batch's slices and summary, folder by folder."""
    for top in ("slices", "labels", "summary"):
        home = storage.join(uri, top)  # there is no such folder if all slices were rejected
        folders = set(storage.list_folders(home))
        names = [name for name in storage.list_names(home) if not name.endswith(disk.TEMPORARY)]
        yield [storage.join(top, name) for name in names if name not in folders]
        for folder in sorted(folders):
            with suppress(FileNotFoundError):
                files = storage.list_files(storage.join(home, folder))
                yield [storage.join(top, folder, name) for name, _ in files]


def _check(part: Mapping[str, Any], uri: str, kind: Format, labels: bool = False) -> dict[str, Any]:
    """The faults of a part, and the `digests_of` its files; none if they cannot be known."""
    name = part["name"]
    try:
        data = storage.read_bytes(storage.join(uri, name))
    except FileNotFoundError:
        return {"faults": [f"{name} is missing"], "folders": [], "digests": []}
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        return {"faults": [f"{name} is changed"], "folders": [], "digests": []}
    found = PART_NAME.fullmatch(name.rpartition("/")[2])
    if not found or name != part_uri("", int(found[1])):
        return {"faults": [f"{name} is no summary of a part"], "folders": [], "digests": []}
    columns = ["id", "level", *FILES[: 1 + labels], *DIGESTS[: 1 + labels]]
    slices = tables.parse(data, summary_schema(labels), storage.join(uri, name), columns)
    faults = list(_faults(uri, kind, int(found[1]), slices))
    sums = digests_of([name, *_files(slices)])
    return {"faults": faults, "folders": list(sums), "digests": list(sums.values())}


def _files(slices: pa.Table) -> list[str]:
    """The files that some rows of a summary name."""
    columns = [slices[name] for name in FILES if name in slices.column_names]
    return [file for column in columns for file in column.unique().to_pylist()]


def _faults(uri: str, kind: Format, part: int, slices: pa.Table) -> Iterator[str]:
    """The faults of the files that the summary of a part names, and of what they hold."""
    whats: list[formats.What] = ["png", "labels"] if "labels_file" in slices.column_names else ["png"]
    for what, file in zip(whats, FILES, strict=False):
        for number, path in zip(slices["id"].to_pylist(), slices[file].to_pylist(), strict=True):
            if path != formats.path_of(kind, what, number, part):
                yield f"{CALLED[what]} {number} is said to be in {path!r}"
    if kind != "png":
        yield from _faults_of_part_file(uri, kind, part, slices) if len(slices) else ()
        return
    for what, file, digest in zip(whats, FILES, DIGESTS, strict=False):
        for row, (number, png) in zip(slices.to_pylist(), formats.read_pngs(uri, kind, slices, what), strict=True):
            if row[file] != formats.path_of(kind, what, number, part):
                continue  # that was said
            if png is None:
                yield f"{CALLED[what]} {number} is missing from {row[file]}"
            elif hashlib.sha256(png).hexdigest() != row[digest]:
                yield f"{CALLED[what]} {number} in {row[file]} is changed"


def _faults_of_part_file(uri: str, kind: Format, part: int, slices: pa.Table) -> Iterator[str]:
    """How the file that holds the slices of a part differs from the part's summary."""
    file, labels = formats.part_path(part, kind), "labels_file" in slices.column_names
    expected: dict[tuple[int | str, str], str] = {}  # id and column -> digest
    for row in slices.to_pylist():
        expected[row["id"], "png"] = row["sha256"]
        if labels:
            expected[row["id"], "labels"] = row["labels_sha256"]
        expected[row["id"], "level"] = hashlib.sha256(formats.about(row["id"], row["level"])).hexdigest()
    there, strangers = list[formats.Content](), dict[int | str, None]()
    with suppress(FileNotFoundError, *formats.UNREADABLE):  # an unreadable file counts as missing
        there = list(formats.unpack(storage.read_bytes(storage.join(uri, file)), kind, labels))
    for number, column, value in there:
        digest = expected.pop((number, column), None)
        if digest is None:
            strangers[number] = None
        elif hashlib.sha256(value or b"").hexdigest() != digest:
            yield f"{CALLED[column]} {number} in {file} is changed"
    for number, column in expected:
        if column != "level" or (number, "png") not in expected:  # a missing slice is one fault
            yield f"{CALLED[column]} {number} is missing from {file}"
    yield from (f"{number!r} in {file} is not part of the batch" for number in strangers)
