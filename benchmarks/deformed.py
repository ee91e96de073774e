"""A training split of any size: the slices of a data set, turned, stretched and moved a little, over and over."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from oasisgen import storage, tables
from oasisgen.data.description import FILE, DataSetDescription, PackedPart, Split
from oasisgen.data.feed import Feed, evenly_spaced
from oasisgen.data.parts import ROWS_PER_GROUP, SLICES_PER_PART
from oasisgen.data.slices import DataSet, open_data_set, schema_of

Columns = dict[str, np.ndarray]


def deformed(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(H, W) uint8, turned, stretched and moved a little."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-4, 4), random.uniform(0.96, 1.04))
    stretch, shift = random.uniform(0.97, 1.03, 2), random.uniform(-4, 4, 2)
    changed: np.ndarray = np.column_stack([stretch[:, None] * matrix[:, :2], matrix[:, 2] + shift])  # (2, 3)
    return np.asarray(cv2.warpAffine(image, changed, (width, height), flags=cv2.INTER_LINEAR))


def shards_of(slices: Feed, count: int) -> Iterator[Columns]:
    """`count` slices, shard by shard: some of a split, or all of it and then deformed ones."""
    random = np.random.default_rng(0)
    rows = evenly_spaced(len(slices), count) if count < len(slices) else np.arange(count) % len(slices)
    levels, cases = slices.column("level"), slices.column("case")
    for first in range(0, count, SLICES_PER_PART):
        some = rows[first : first + SLICES_PER_PART]
        images = slices.rows(some, "image")
        for number, image in enumerate(images, first):
            if number >= len(slices):
                image[:] = deformed(image, random)
        turns = np.arange(first, first + len(some)) // len(slices)
        names = np.array([f"{case}-{turn}" for case, turn in zip(cases[some], turns, strict=True)], object)
        yield {"case": names, "subject": names, "level": levels[some], "image": images}


def _parquet(shard: Columns, schema: pa.Schema) -> bytes:
    """A shard as packing writes it; columns that it lacks are null."""
    height, width = shard["image"].shape[1:]
    rows = len(shard["level"])
    columns: dict[str, Any] = {"height": [height] * rows, "width": [width] * rows}
    columns |= shard | {"image": [image.tobytes() for image in shard["image"]]}
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type)
        for field in schema
    ]
    return tables.to_bytes(pa.table(arrays, schema), ROWS_PER_GROUP)


def enlarged(data: DataSet, splits: dict[str, Feed], uri: str, count: int) -> DataSet:
    """A data set at `uri` without label maps, with `count` training slices and the other splits as they are.

    It is written unless it is there.
    """
    file = storage.join(uri, FILE)
    if not storage.exists(file):
        plain = replace(data.description, label_classes=(), slices_without_labels=0, covariates=())
        plain = replace(plain, source=f"{data.uri}, enlarged", blank=(), equal=())
        sizes = {name: count if name == "train" else len(feed) for name, feed in splits.items()}
        written = {name: _write(shards_of(splits[name], size), plain, uri, name) for name, size in sizes.items()}
        digests = "".join(part.sha256 for split in written.values() for part in split.parts)
        described = replace(plain, splits=written, fingerprint=hashlib.sha256(digests.encode()).hexdigest())
        storage.write_text(file, json.dumps(described.to_json()))
    return open_data_set(uri)


def _write(shards: Iterator[Columns], description: DataSetDescription, uri: str, split: str) -> Split:
    """Write a split of a data set as packing does; what `dataset.json` says of it."""
    parts, cases, levels, schema = [], Counter[str](), set(), schema_of(description)
    for number, shard in enumerate(shards):
        name, data = f"part-{number:05d}.parquet", _parquet(shard, schema)
        storage.write_bytes(storage.join(uri, split, name), data)
        parts.append(PackedPart(name, len(shard["level"]), len(data), hashlib.sha256(data).hexdigest()))
        cases.update(shard["case"].tolist())
        levels.update(shard["level"].tolist())
    return Split(sum(part.slices for part in parts), dict(cases), tuple(sorted(levels)), tuple(parts))
