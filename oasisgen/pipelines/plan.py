"""The lines that `--dry-run` prints: what a job would do."""

import math
from collections.abc import Iterator

from oasisgen.config.data import Shape
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import FeedName, steps_per_epoch
from oasisgen.data.slices import DataSet
from oasisgen.pipelines import feeds
from oasisgen.progress import human_bytes
from oasisgen.sampling.parts import complete_parts
from oasisgen.sampling.request import BatchRequest
from oasisgen.training.shared_features import planned

PNG_BYTES = 0.29  # of a slice's pixel, about


def stages_of(config: TrainConfig, data: DataSet) -> tuple[str, ...]:
    """The stages of training on a data set: one more if it has label maps."""
    return (*config.stages, "labels") if data.label_classes else config.stages


def plan_run(config: TrainConfig, data: DataSet, cluster_has: dict[str, float], state: str) -> Iterator[str]:
    """Lines: data, steps and sizes of each stage, resources; `state` says how far the run has come."""
    rows = data.count("train")
    for split in ("train", "validate"):
        cases, count = len(data.split(split).cases), data.count(split)
        weight, shards = human_bytes(data.file_bytes(split)), len(data.parts(split))
        yield f"{split}: {count} slices of {cases} cases, {weight} in {shards} shards"
    yield f"data: {data.shape}; VQ-VAE crops of {' x '.join(map(str, config.vqvae.crop_of(data.image_size)))}"
    for stage in stages_of(config, data):
        c = getattr(config, stage)
        steps = steps_per_epoch(rows, c.batch_size)
        yield f"{stage}: {c.epochs} epochs x {steps} steps of {c.batch_size} slices = {c.epochs * steps} steps"
    yield planned(data, config.features)
    yield f"codes: {rows} maps, {human_bytes(rows * data.shape.codes * feeds.CODE_BYTES)} before compression"
    yield from feeds.planned(config.feed, data, cluster_has["store"])
    least = f"{config.min_workers} to " if config.min_workers else ""
    yield (
        f"workers: {least}{config.workers} x {config.cpus_per_worker:g} CPUs, {config.gpus_per_worker:g} GPUs, "
        f"and 1 CPU for data tasks; free are {cluster_has['CPU']:g} CPUs, {cluster_has['GPU']:g} GPUs"
    )
    yield f"saved at least every {config.checkpoint_seconds:g} s to {config.out}"
    yield f"the run {state}"


def plan_batch(
    request: BatchRequest,
    shape: Shape,
    data: DataSet | None,
    out: str,
    finished: bool,
    cluster_has: dict[str, float],
    feed: FeedName = "memory",
) -> Iterator[str]:
    """Lines: model, slices and parts, the data set that the batch is measured against, and resources.

    `feed` says where the training slices come from, `memory` or `stream`.
    """
    slices, parts = request.count, math.ceil(request.count / request.part_size)
    done = "finished" if finished else f"{sum(number < parts for number in complete_parts(out))} made"
    yield f"model {request.model}, base seed {request.base_seed}"
    size = human_bytes(int(slices * math.prod(shape.image_size) * PNG_BYTES))
    yield f"{slices} slices in {parts} parts, {done}, about {size}"
    if request.label_classes:
        yield f"each with a label map: {', '.join(of.name for of in request.label_classes)}"
    if data:
        yield f"measured against {data.uri}, {data.count('train')} training slices"
        if feed == "stream":
            yield "these do not fit into the object store: the few that a slice is compared with are read from storage"
    yield f"to {out}; {cluster_has['CPU']:g} CPUs, {cluster_has['GPU']:g} GPUs are free"
