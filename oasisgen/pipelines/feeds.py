"""How slices reach the workers of a run: from memory, or from storage while they train."""

import math
from collections.abc import Iterator

from oasisgen import cluster, documents, storage
from oasisgen.config.folder import ADDED, MARK
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import FeedName
from oasisgen.data.slices import DataSet
from oasisgen.data.stream import most_bytes
from oasisgen.models.codes import MOST_ANALYSED
from oasisgen.progress import human_bytes

CODE_BYTES = 2  # of a position in a stored code map
WORKER_BYTES = 10**9  # of a worker that trains, without its data
FITTED_BYTES = 16 * MOST_ANALYSED  # of the maps that a prior's components are computed from
SLICE_BYTES = 1000  # of a training slice, in a worker that trains a prior: its coefficients, twice for a moment
MOST_LABELLED = {"train": 8192, "validate": 1024}  # label maps that a run with the feed `stream` holds in memory


def begun_with(out: str) -> FeedName | None:
    """The feed of the run in `out`; None if there is no run. Runs of older versions do not name theirs."""
    try:
        return documents.read(storage.join(out, MARK), dict).get("feed", ADDED["feed"])
    except FileNotFoundError:
        return None


def choose(config: TrainConfig, data: DataSet) -> FeedName:
    """The feed for a new run with `--feed auto`: from memory if the slices fit into every object store."""
    full = cluster.too_small(store_bytes(data, "memory"), config.cpus_per_worker, config.gpus_per_worker)
    return "stream" if full else "memory"


def require_room(config: TrainConfig, data: DataSet) -> None:
    """Raise UserError if the object stores, or the memory of nodes that stream, are too small for `config.feed`."""
    cpus, gpus = config.cpus_per_worker, config.gpus_per_worker
    fix = ", or use --feed stream" if config.feed == "memory" else ""
    cluster.require_store(store_bytes(data, config.feed), cpus, gpus, fix)
    if config.feed == "stream":
        cluster.require_memory(worker_bytes(data), config.workers, cpus, gpus)


def store_bytes(data: DataSet, feed: str) -> int:
    """The most that a run needs in the object store.

    That is all slices, or their label maps and the held-out slices; with `stream`, some label maps and their code maps.
    """
    labelled = bool(data.label_classes)
    if feed == "memory":
        return data.pixels("train", "validate") + (data.pixels("validate") if labelled else 0)
    maps = sum(min(data.count(split), most) for split, most in MOST_LABELLED.items()) if labelled else 0
    return maps * (math.prod(data.image_size) + data.shape.codes * CODE_BYTES)


def worker_bytes(data: DataSet) -> int:
    """The most memory that a worker needs with the feed `stream`, for slices or for code maps."""
    rows = [part.slices for split in ("train", "validate") for part in data.split(split).parts]
    streaming = most_bytes(rows, math.prod(data.image_size))
    return WORKER_BYTES + max(streaming, FITTED_BYTES) + data.count("train") * SLICE_BYTES


def planned(feed: str, data: DataSet, has: float) -> Iterator[str]:
    """Lines for a dry run on a cluster that `has` so many bytes of object store."""
    held = human_bytes(store_bytes(data, feed))
    yield f"object store: {held} on each node that trains, the cluster has {human_bytes(has)}"
    if feed == "stream":
        yield f"slices are streamed from storage, with at most {human_bytes(worker_bytes(data))} of memory per worker"
