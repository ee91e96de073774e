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
from oasisgen.sampling.parts import summary_schema

SHOWN = 3  # faults that the message lists, at most
FILES = "file", "labels_file"  # the columns of a summary that name files; the second only with label maps


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
    digests = ["sha256", *(["labels_sha256"] if labels else [])]
    slices = tables.parse(data, summary_schema(labels), storage.join(uri, name), ["id", *FILES[: 1 + labels], *digests])
    faults = list(_faults(uri, kind, slices, "png", "slice"))
    if labels:
        faults += _faults(uri, kind, slices, "labels", "the label map of slice")
    sums = digests_of([name, *_files(slices)])
    return {"faults": faults, "folders": list(sums), "digests": list(sums.values())}


def _files(slices: pa.Table) -> list[str]:
    """The files that some rows of a summary name."""
    columns = [slices[name] for name in FILES if name in slices.column_names]
    return [file for column in columns for file in column.unique().to_pylist()]


def _faults(uri: str, kind: Format, slices: pa.Table, what: formats.What, called: str) -> Iterator[str]:
    """The faults of the PNGs that some rows of a summary name."""
    file, digest = ("file", "sha256") if what == "png" else ("labels_file", "labels_sha256")
    for row, (number, png) in zip(slices.to_pylist(), formats.read_pngs(uri, kind, slices, what), strict=True):
        if png is None:
            yield f"{called} {number} is missing from {row[file]}"
        elif hashlib.sha256(png).hexdigest() != row[digest]:
            yield f"{called} {number} in {row[file]} is changed"
