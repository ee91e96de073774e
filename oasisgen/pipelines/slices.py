"""Make the slices of a batch, part by part, with Ray Data."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from oasisgen import cluster, meters
from oasisgen.data.feed import chunks
from oasisgen.lock import Lock
from oasisgen.models.bundle import Bundle
from oasisgen.progress import Progress
from oasisgen.quality.gate import QualityFilter
from oasisgen.quality.nearest import ReferenceComparer
from oasisgen.quality.reference import ReferenceData
from oasisgen.sampling import formats
from oasisgen.sampling.ids import GROUP, groups
from oasisgen.sampling.manifest import BatchPart
from oasisgen.sampling.parts import READERS, commit_part, complete_parts, entry_of
from oasisgen.sampling.png import PngEncoder
from oasisgen.sampling.request import BatchRequest, PlannedPart
from oasisgen.sampling.sample import Sampler

GROUPS_PER_BLOCK = 4  # sampled by one task: few, so that little is in memory at once
IDS_AT_ONCE = 2**20  # in one execution of Ray Data: the driver lists its groups, and each execution starts new actors
MOST_TRIED = 2  # times the count: a model is useless if more than half of its slices are rejected


@dataclass(frozen=True)
class BatchJob:
    """A batch to make: where it lies, what was requested, of which model, and what its actors run on."""

    out: str
    request: BatchRequest
    bundle: Bundle
    actors: cluster.Actors


def make_slices(
    job: BatchJob, real: ReferenceData | None, least: dict[str, float], held: Lock
) -> tuple[list[BatchPart], int]:
    """Make the missing parts until as many slices are kept as were requested; returns all parts, and how many slices
    were made, rejected ones too.

    `least` has the threshold of each measure below which a slice is rejected.
    """
    request, first, count, entries = job.request, 0, 0, list[BatchPart]()
    entry, end = partial(part_entry, job), request.count
    while first < end:
        made = complete_parts(job.out)
        missing = [part for part in request.parts(first, end, len(entries)) if part.number not in made]
        size = sum(part.size for part in missing)
        with Progress("generate", size, "slices") as progress:
            for some in chunks(missing, max(1, IDS_AT_ONCE // request.part_size)):
                for number, slices in make_parts(job, real, least, some, progress):
                    commit_part(job.out, number, request.format, slices, held)
        count += size
        with ThreadPoolExecutor(READERS) as pool:
            entries += pool.map(entry, request.parts(first, end, len(entries)))
        lacking = 0 if request.ids else request.count - sum(part.slices for part in entries)
        first, end = end, min(end + lacking, MOST_TRIED * request.count)
    return entries, count


def part_entry(job: BatchJob, part: PlannedPart) -> BatchPart:
    """The manifest's entry for a part that has been made."""
    return entry_of(job.out, part.number, part.size, bool(job.request.label_classes))


def make_parts(
    job: BatchJob,
    real: ReferenceData | None,
    least: dict[str, float],
    missing: list[PlannedPart],
    progress: Progress,
) -> Iterator[tuple[int, pa.Table]]:
    """Sample, compare and write the slices of some parts; yields each, with its number, once its PNGs are written."""
    request, bundle = job.request, job.bundle
    ids = {part.number: request.ids_in(part, bundle.shape.levels) for part in missing}
    labels = bool(request.label_classes)
    pieces = [{"part": number, "group": group} for number, its in ids.items() for group in groups(its).tolist()]
    if not pieces:
        return
    rows = ray.data.from_items(pieces, override_num_blocks=1 + len(pieces) // GROUPS_PER_BLOCK).map_batches(
        Sampler,
        fn_constructor_args=(bundle.uri, request.base_seed, request.precision, bundle.digest, labels),
        batch_size=1,
        **cluster.pool(job.actors, sum(map(len, ids.values()))),
    )
    compare: list[Any] = [ReferenceComparer(real.train, real.held_out, request.base_seed)] if real else []
    for step in (
        *compare,
        QualityFilter(least),
        PngEncoder(bundle.digest, request.base_seed, tuple(of.name for of in request.label_classes)),
        formats.SliceWriter(job.out, request.format),
    ):
        rows = rows.map_batches(step, batch_size=GROUP, **cluster.tasks())
    pending: dict[int, list[pa.Table]] = {part.number: [] for part in missing}
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        progress.advance(len(batch))
        meters.show("generate", slices_per_second=progress.rate)
        for number in pc.unique(batch["part"]).to_pylist():
            pending[number].append(batch.filter(pc.equal(batch["part"], number)))
            if sum(map(len, pending[number])) == len(ids[number]):
                yield number, pa.concat_tables(pending.pop(number), promote_options="default").sort_by("id")
    assert not pending, f"parts without all their slices: {list(pending)}"
