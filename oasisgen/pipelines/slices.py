"""Make the slices of a batch, part by part, with Ray Data."""

from collections.abc import Iterator
from dataclasses import dataclass
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
from oasisgen.sampling.manifest import BatchPart
from oasisgen.sampling.parts import commit_part, entry_of, part_uri
from oasisgen.sampling.png import PngEncoder
from oasisgen.sampling.request import BatchRequest
from oasisgen.sampling.sample import Sampler

GROUPS_PER_BLOCK = 4  # sampled by one task: few, so that little is in memory at once
MOST_TRIED = 2  # times the count: a model is useless if more than half of its slices are rejected


@dataclass(frozen=True)
class BatchJob:
    """A batch to make: where it lies, what was requested, of which model, and what its actors run on."""

    out: str
    request: BatchRequest
    bundle: Bundle
    actors: cluster.Actors


def make_slices(job: BatchJob, real: ReferenceData | None, least: dict[str, float], held: Lock) -> list[BatchPart]:
    """Make the missing parts until as many slices are kept as were requested; returns all parts.

    `least` has the threshold of each measure below which a slice is rejected.
    """
    request, of, tried = job.request, job.bundle.shape.levels, 0
    parts: list[BatchPart] = []
    planned = list(request.first_parts(of))
    while planned:
        numbered = dict(enumerate(planned, len(parts)))
        missing = {number: ids for number, ids in numbered.items() if not storage.exists(part_uri(job.out, number))}
        with Progress("generate", sum(map(len, missing.values())), "slices") as progress:
            for number, slices in make_parts(job, real, least, missing, progress):
                commit_part(job.out, number, request.format, slices, held)
        parts += [entry_of(job.out, number, len(ids), bool(request.label_classes)) for number, ids in numbered.items()]
        tried += sum(map(len, planned))
        kept = sum(part.slices for part in parts)
        more = 0 if request.ids else min(request.count - kept, MOST_TRIED * request.count - tried)
        planned = list(request.parts_between(of, tried, tried + more))
    return parts


def make_parts(
    job: BatchJob,
    real: ReferenceData | None,
    least: dict[str, float],
    missing: dict[int, np.ndarray],
    progress: Progress,
) -> Iterator[tuple[int, pa.Table]]:
    """Sample, compare and write the slices of some parts {number: ids}; yields a part once its PNGs are written."""
    request, bundle = job.request, job.bundle
    labels = bool(request.label_classes)
    pieces = [{"part": number, "group": group} for number, ids in missing.items() for group in groups(ids).tolist()]
    if not pieces:
        return
    rows = ray.data.from_items(pieces, override_num_blocks=1 + len(pieces) // GROUPS_PER_BLOCK).map_batches(
        Sampler,
        fn_constructor_args=(bundle.uri, request.base_seed, request.precision, bundle.digest, labels),
        batch_size=1,
        **cluster.pool(job.actors),
    )
    compare: list[Any] = [ReferenceComparer(real.train, real.held_out, request.base_seed)] if real else []
    for step in (
        *compare,
        QualityFilter(least),
        PngEncoder(bundle.digest, request.base_seed, tuple(of.name for of in request.label_classes)),
        formats.SliceWriter(job.out, request.format),
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
