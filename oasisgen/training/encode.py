"""Encode slices to code maps, once per run, with Ray Data."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from oasisgen import actor, cluster, documents, storage, tables
from oasisgen.data.feed import Stored, store
from oasisgen.data.pixels import to_unit
from oasisgen.data.shards import Columns, Shard, SliceKey, read_shards
from oasisgen.data.slices import DataSet, read_slices
from oasisgen.data.stream import Streamed
from oasisgen.documents import Count, Name
from oasisgen.errors import UserError
from oasisgen.lock import Commit
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import repeatable
from oasisgen.progress import Progress

MAPS_PER_PART = 1024
ENCODE_BATCH = 16
SCHEMA = pa.schema([("case", pa.string()), ("level", pa.int16()), ("codes", pa.binary())])  # raw uint16 rows


@dataclass(frozen=True)
class CodesPart:
    """A Parquet file of code maps."""

    name: Name
    maps: Count
    sha256: str


@dataclass(frozen=True)
class CodesFile:
    """`codes/<split>.json` of a run."""

    data: str  # fingerprint of the data set
    vqvae: str  # digest of the weights
    parts: tuple[CodesPart, ...]


class Encoder:
    """A Ray actor that encodes batches of slices with the model that `load` reads from storage."""

    def __init__(self, load: Callable[[], VQVAE]) -> None:
        self.device = actor.set_up()
        self.model = load().to(self.device)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = to_unit(torch.from_numpy(np.array(batch["image"])).unsqueeze(1).to(self.device))  # (B, 1, H, W)
        with repeatable(self.device):
            codes = self.model.encode(x)  # (B, H/4, W/4)
        return {"case": batch["case"], "level": batch["level"], "codes": codes.cpu().numpy().astype(np.uint16)}


def encode_splits(
    data: DataSet, splits: Sequence[str], load: Callable[[], VQVAE], uri: str, actors: cluster.Actors, commit: Commit
) -> str:
    """Write `<uri>/<split>/part-*.parquet` and then, with `commit`, `<uri>/<split>.json`, which holds their digests.

    A finished split is left unchanged. Returns the digest of the VQ-VAE.
    """
    source = hashlib.sha256()
    for name, value in sorted(load().state_dict().items()):
        source.update(name.encode() + value.numpy().tobytes())
    mark = {"version": 2, "data": data.fingerprint, "vqvae": source.hexdigest()}  # version 1 had no digests
    left = [split for split in splits if not is_encoded(uri, split, mark)]
    if left:
        encoded = read_slices(data, *left, shared=True).map_batches(  # one pool of actors, which take seconds to start
            Encoder,
            fn_constructor_args=(load,),
            batch_size=ENCODE_BATCH,
            **cluster.pool(actors, sum(map(data.count, left))),
        )
        maps = iter(encoded.iter_rows())  # in the order of the splits
        for split in left:
            parts = write_codes(islice(maps, data.count(split)), uri, split, data.count(split))
            commit(storage.join(uri, f"{split}.json"), (json.dumps(mark | {"parts": parts}) + "\n").encode())
    return source.hexdigest()


def is_encoded(uri: str, split: str, mark: dict[str, Any]) -> bool:
    """Whether a split was encoded before, with the VQ-VAE and from the data set of `mark`."""
    done = storage.join(uri, f"{split}.json")
    found = storage.read_json(done) if storage.exists(done) else None
    return isinstance(found, dict) and mark.items() <= found.items()


def write_codes(maps: Iterator[dict[str, Any]], uri: str, split: str, count: int) -> list[dict[str, Any]]:
    """Write the `count` code maps of a split; returns what `CodesFile.parts` holds of each file."""
    parts: list[dict[str, Any]] = []
    with Progress("codes", count, f"{split} slices") as progress:
        while rows := [row | {"codes": row["codes"].tobytes()} for row in islice(maps, MAPS_PER_PART)]:
            name = f"part-{len(parts):05d}.parquet"
            table = pa.Table.from_pylist(rows, SCHEMA)
            written = tables.write(storage.join(uri, split, name), table, MAPS_PER_PART)
            parts.append({"name": name, "maps": len(rows), "sha256": hashlib.sha256(written).hexdigest()})
            progress.advance(len(rows))
    return parts


def require_same_codes(uri: str, vqvae: str, commit: Commit) -> None:
    """Raise UserError if training of the prior at `uri` started on the codes of another VQ-VAE.

    `vqvae` is the digest that `encode_splits` returns. It changes if the best checkpoint of stage 1 is lost.
    """
    mark = storage.join(uri, "codes.json")
    written = (json.dumps({"vqvae": vqvae}) + "\n").encode()
    if not storage.exists(mark):
        commit(mark, written)
    elif storage.read_bytes(mark) != written:
        raise UserError(
            f"{uri} was trained on the codes of another VQ-VAE, whose checkpoint cannot be read: restore it, or use "
            "another --out"
        )


def shards_of(uri: str, split: str) -> list[Shard]:
    """The Parquet files of a split's code maps, each with its digest."""
    done = storage.join(uri, f"{split}.json")
    return [
        Shard(
            storage.join(uri, split, part.name),
            part.sha256,
            part.maps,
            f"is not the file that was written (other sha256): remove {done} and run the command again",
        )
        for part in documents.read(done, CodesFile).parts
    ]


def read_codes(
    uri: str, split: str, code_size: tuple[int, int], wanted: Collection[SliceKey] | None = None
) -> ray.data.Dataset:
    """A split's code maps, or those of the slices in `wanted`, as a Ray data set of `case` str, `level` int64 and
    `codes` uint16 of `code_size`.

    Reading a file raises InvalidFile if its bytes are not those that `encode_splits` wrote.
    """
    return read_shards(shards_of(uri, split), SCHEMA, columns_of(code_size, wanted))


def source_of(feed: str, uri: str, split: str, code_size: tuple[int, int]) -> Stored | Streamed:
    """The same rows, as the workers will get them by this feed, `memory` or `stream`. Raises as `read_codes`."""
    if feed == "memory":
        return store(read_codes(uri, split, code_size))
    return Streamed(tuple(shards_of(uri, split)), SCHEMA, columns_of(code_size))


def columns_of(code_size: tuple[int, int], wanted: Collection[SliceKey] | None = None) -> Columns:
    """What is read of a code map."""
    return Columns("codes", np.uint16, code_size, ("case", "level"), wanted)
