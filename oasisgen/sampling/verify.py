"""Verify that a batch is complete and unchanged."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from oasisgen import cluster, storage, tables
from oasisgen.config.generate import Format
from oasisgen.errors import UserError
from oasisgen.sampling import formats
from oasisgen.sampling.manifest import Manifest, read_finished
from oasisgen.sampling.parts import summary_schema

SHOWN = 3  # faults that the message lists, at most


def verify(uri: str) -> Manifest:
    """Read every byte of the batch at `uri` and compare it with its digests; returns the manifest. Needs Ray.

    Raises UserError if the batch is not finished, if a part or slice is missing or changed, and if a file belongs to no
    part.
    """
    uri = storage.absolute(uri)
    manifest = read_finished(uri)
    parts = ray.data.from_items(list(map(asdict, manifest.parts)), override_num_blocks=max(1, len(manifest.parts)))
    request = manifest.request
    check = partial(_check, uri=uri, kind=request.format, labels=bool(request.label_classes))
    checked = parts.map(check, **cluster.tasks()).take_all()
    faults = [fault for part in checked for fault in part["faults"]]
    if all(part["files"] for part in checked):
        known = {file for part in checked for file in part["files"]}
        faults += [f"{name} belongs to no part" for name in _stored_files(uri) if name not in known]
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"batch {uri} does not match its manifest: {'; '.join(faults[:SHOWN])}{more}: generate it again elsewhere"
        )
    return manifest


def _stored_files(uri: str) -> list[str]:
    found = []
    for folder in ("slices", "labels", "summary"):
        with suppress(FileNotFoundError):  # no such folder if all slices were rejected
            found += [storage.join(folder, name) for name, _ in storage.list_files(storage.join(uri, folder))]
    return found


def _check(part: Mapping[str, Any], uri: str, kind: Format, labels: bool = False) -> dict[str, Any]:
    """The faults of a part, and the files that belong to it; none if they cannot be known."""
    name = part["name"]
    try:
        data = storage.read_bytes(storage.join(uri, name))
    except FileNotFoundError:
        return {"faults": [f"{name} is missing"], "files": []}
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        return {"faults": [f"{name} is changed"], "files": []}
    files = ["file", *(["labels_file"] if labels else [])]
    digests = ["sha256", *(["labels_sha256"] if labels else [])]
    slices = tables.parse(data, summary_schema(labels), storage.join(uri, name), ["id", *files, *digests])
    faults = list(_faults(uri, kind, slices, "png", "slice"))
    if labels:
        faults += _faults(uri, kind, slices, "labels", "the label map of slice")
    there = [file for column in files for file in slices[column].unique().to_pylist()]
    return {"faults": faults, "files": [name, *there]}


def _faults(uri: str, kind: Format, slices: pa.Table, what: formats.What, called: str) -> Iterator[str]:
    """The faults of the PNGs that some rows of a summary name."""
    file, digest = ("file", "sha256") if what == "png" else ("labels_file", "labels_sha256")
    for row, (number, png) in zip(slices.to_pylist(), formats.read_pngs(uri, kind, slices, what), strict=True):
        if png is None:
            yield f"{called} {number} is missing from {row[file]}"
        elif hashlib.sha256(png).hexdigest() != row[digest]:
            yield f"{called} {number} in {row[file]} is changed"
