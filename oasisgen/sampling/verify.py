"""Prove that a batch is complete and untouched."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import ray.data

from oasisgen import cluster, storage, tables
from oasisgen.config.generate import Format
from oasisgen.errors import UserError
from oasisgen.sampling import formats
from oasisgen.sampling.manifest import Manifest, read_manifest
from oasisgen.sampling.parts import SUMMARY

SHOWN = 3  # faults that the message names


def verify(uri: str) -> Manifest:
    """Read every byte of the batch at `uri` and compare it with its digests; returns the manifest. Needs Ray.

    Raises UserError for a batch that is not finished, and for one with a part or slice that is missing, changed or
    unknown to all parts.
    """
    uri = storage.absolute(uri)
    try:
        manifest = read_manifest(uri)
    except FileNotFoundError:
        storage.check(uri, write=False)
        raise UserError(
            f"no finished batch at {uri} (manifest.json is missing): run the command that makes it"
        ) from None
    parts = ray.data.from_items(list(map(asdict, manifest.parts)), override_num_blocks=max(1, len(manifest.parts)))
    checked = parts.map(partial(_check, uri=uri, kind=manifest.request.format), **cluster.tasks()).take_all()
    faults = [fault for part in checked for fault in part["faults"]]
    if all(part["files"] for part in checked):
        known = {file for part in checked for file in part["files"]}
        faults += [f"{name} belongs to no part" for name in _there(uri) if name not in known]
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"batch {uri} does not match its manifest: {'; '.join(faults[:SHOWN])}{more}: generate it again elsewhere"
        )
    return manifest


def _there(uri: str) -> list[str]:
    found = []
    for folder in ("slices", "summary"):
        with suppress(FileNotFoundError):  # where all slices were refused
            found += [storage.join(folder, name) for name, _ in storage.list_files(storage.join(uri, folder))]
    return found


def _check(part: Mapping[str, Any], uri: str, kind: Format) -> dict[str, Any]:
    """What is wrong with a part, and the files that belong to it; none where that cannot be known."""
    name = part["name"]
    try:
        data = storage.read_bytes(storage.join(uri, name))
    except FileNotFoundError:
        return {"faults": [f"{name} is missing"], "files": []}
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        return {"faults": [f"{name} is changed"], "files": []}
    slices = tables.parse(data, SUMMARY, storage.join(uri, name), ["id", "file", "sha256"])
    faults = []
    for row, (number, png) in zip(slices.to_pylist(), formats.read_pngs(uri, kind, slices), strict=True):
        if png is None:
            faults.append(f"slice {number} is missing from {row['file']}")
        elif hashlib.sha256(png).hexdigest() != row["sha256"]:
            faults.append(f"slice {number} in {row['file']} is changed")
    return {"faults": faults, "files": [name, *slices["file"].unique().to_pylist()]}
