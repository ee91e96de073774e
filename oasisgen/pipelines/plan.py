"""What a training job would do, in words: `--dry-run`."""

from collections.abc import Iterator

from oasisgen.config.data import CODE_SIZE
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import steps_per_epoch
from oasisgen.data.slices import DataSet
from oasisgen.progress import size

CODE_BYTES = 2  # of a position in a stored code map


def plan(config: TrainConfig, data: DataSet, cluster_has: dict[str, float], state: str) -> Iterator[str]:
    """Lines: data, steps and sizes of each stage, resources; `state` says how far the run has come."""
    rows = data.count("train")
    for split in ("train", "validate"):
        cases, count = len(data.split(split).cases), data.count(split)
        yield f"{split}: {count} slices of {cases} cases, {size(data.size(split))} in {len(data.parts(split))} shards"
    for stage in config.stages:
        c = getattr(config, stage)
        steps = steps_per_epoch(rows, c.batch_size)
        yield f"{stage}: {c.epochs} epochs x {steps} steps of {c.batch_size} slices = {c.epochs * steps} steps"
    yield f"codes: {rows} maps, {size(rows * CODE_SIZE**2 * CODE_BYTES)} before compression"
    held = size(data.pixels("train", "validate"))
    yield f"object store: {held} on each node that trains, the cluster has {size(cluster_has['store'])}"
    least = f"{config.min_workers} to " if config.min_workers else ""
    yield (
        f"workers: {least}{config.workers} x {config.cpus_per_worker:g} CPUs, {config.gpus_per_worker:g} GPUs, "
        f"and 1 CPU for data tasks; free are {cluster_has['CPU']:g} CPUs, {cluster_has['GPU']:g} GPUs"
    )
    yield f"saved at least every {config.checkpoint_seconds:g} s to {config.out}"
    yield f"the run {state}"
