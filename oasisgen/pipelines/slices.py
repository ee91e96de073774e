"""Make the slices of a batch, part by part, with Ray Data."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from oasisgen import cluster, meters, storage
from oasisgen.lock import Lock
from oasisgen.models.bundle import Bundle
from oasisgen.progress import Progress
from oasisgen.quality.gate import QualityFilter
from oasisgen.quality.nearest import ReferenceComparer
from oasisgen.quality.reference import ReferenceData
from oasisgen.sampling import formats
from oasisgen.sampling.ids import GROUP, groups
from oasisgen.sampling.parts import entry_of, first_parts, part_uri, parts_between, write_part
from oasisgen.sampling.png import PngEncoder
from oasisgen.sampling.sample import Sampler

GROUPS_PER_BLOCK = 4  # that one task samples: few, so that little is in memory at once


MOST_TRIED = 2  # times the count: a model whose slices are refused more often than not is no use


def make_slices(
    bundle: Bundle,
    request: dict[str, Any],
    references: ReferenceData | None,
    least: dict[str, float],
    out: str,
    held: Lock,
    actors: cluster.Actors,
) -> list[dict[str, Any]]:
    """Make what is missing of all parts, until as many slices as asked for are left; returns the manifest's `parts`."""
    count, tried = request["count"], 0
    entries: list[dict[str, Any]] = []
    planned = list(first_parts(request))
    while planned:
        numbered = dict(enumerate(planned, len(entries)))
        missing = {number: ids for number, ids in numbered.items() if not storage.exists(part_uri(out, number))}
        with Progress("generate", sum(map(len, missing.values())), "slices") as progress:
            for number, slices in make_parts(bundle, request, references, least, out, missing, actors, progress):
                write_part(out, number, request["format"], slices, held)
        entries += [entry_of(out, number, len(ids)) for number, ids in numbered.items()]
        tried += sum(map(len, planned))
        left = sum(entry["slices"] for entry in entries)
        more = 0 if request["ids"] else min(count - left, MOST_TRIED * count - tried)
        planned = list(parts_between(request, tried, tried + more))
    return entries


def make_parts(
    bundle: Bundle,
    request: dict[str, Any],
    references: ReferenceData | None,
    least: dict[str, float],
    out: str,
    missing: dict[int, np.ndarray],
    actors: cluster.Actors,
    progress: Progress,
) -> Iterator[tuple[int, pa.Table]]:
    """Sample, compare and write the slices of some parts {number: ids}; yields a part once its PNGs are written."""
    pieces = [{"part": number, "group": group} for number, ids in missing.items() for group in groups(ids).tolist()]
    if not pieces:
        return
    rows = ray.data.from_items(pieces, override_num_blocks=1 + len(pieces) // GROUPS_PER_BLOCK).map_batches(
        Sampler,
        fn_constructor_args=(bundle.uri, request["base_seed"], request["precision"], bundle.digest),
        batch_size=1,
        **cluster.pool(actors),
    )
    compare: list[Any] = (
        [ReferenceComparer(references.train, references.held_out, request["base_seed"])] if references else []
    )
    for step in (
        *compare,
        QualityFilter(least),
        PngEncoder(bundle.digest, request["base_seed"]),
        formats.SliceWriter(out, request["format"]),
    ):
        rows = rows.map_batches(step, batch_size=GROUP, **cluster.tasks())
    pending: dict[int, list[pa.Table]] = {number: [] for number in missing}
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        progress.advance(len(batch))
        meters.show("generate", slices_per_second=progress.rate)
        for number in pc.unique(batch["part"]).to_pylist():
            pending[number].append(batch.filter(pc.equal(batch["part"], number)))
            if sum(map(len, pending[number])) == len(missing[number]):
                yield number, pa.concat_tables(pending.pop(number), promote_options="default").sort_by("id")
    assert not pending, f"parts without all their slices: {list(pending)}"
