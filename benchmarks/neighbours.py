"""What it costs to find the nearest training slice among many: `python -m benchmarks.neighbours`.

For several sizes of the training split, prints the CPU time to compare a slice, also as a ratio to that with the size
before, and the private memory of the process that compares it. Splits that are larger than the data set's own are
filled up with its slices, turned, stretched and moved a little. They lie in a temporary folder: 100,000 slices take
10 GB there, and 1.1 GB of the object store.
"""

import argparse
import hashlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray

from benchmarks.common import packed, private_memory
from benchmarks.deformed import parquet, shards_of
from oasisgen import actor, cluster, storage
from oasisgen.data.feed import Feed, store
from oasisgen.data.shards import Shard
from oasisgen.data.slices import DataSet, image_columns, open_data_set, read_slices, schema_of
from oasisgen.data.stream import Streamed
from oasisgen.quality.nearest import RealSlices, load_index
from oasisgen.quality.searchable import Searchable, searchable

SIZES = 1_000, 9_664, 100_000  # training slices
COMPARED = 64  # slices of each round, after as many that warm the process up
ROUNDS = 5  # in each, all sizes


@dataclass(frozen=True)
class Mapped:
    """Slices in a file that all processes map, like the object store, whatever its size."""

    file: str
    size: tuple[int, int]
    shards: tuple[int, ...]  # rows

    def load(self) -> Feed:
        """Map it."""
        images = np.memmap(self.file, np.uint8, "r").reshape(-1, *self.size)
        return Feed([{"image": piece} for piece in np.split(images, np.cumsum(self.shards)[:-1])])


def write(folder: Path, data: DataSet, train: Feed, count: int) -> tuple[Streamed, Mapped]:
    """The training split of that size: as Parquet, and as a file to map."""
    shards: list[Shard] = []
    schema = schema_of(data.description)
    with open(folder / "pixels", "wb") as pixels:
        for piece in shards_of(train, count):
            pixels.write(piece["image"].tobytes())
            written, rows = parquet(piece, schema), len(piece["level"])
            uri = str(folder / f"part-{len(shards):05d}.parquet")
            storage.write_bytes(uri, written)
            shards.append(Shard(uri, hashlib.sha256(written).hexdigest(), rows, "changed"))
    streamed = Streamed(tuple(shards), schema, image_columns(data))
    return streamed, Mapped(str(folder / "pixels"), data.image_size, tuple(shard.rows for shard in shards))


def measured(train: Searchable, held_out: Searchable, levels: int) -> tuple[float, float]:
    """Milliseconds of CPU time to compare a slice, and MB of private memory that this takes, at most."""
    actor.set_up()
    cv2.setNumThreads(1)
    before = private_memory()
    real = RealSlices(load_index(train), load_index(held_out))
    images = real.held_out.slices.rows(np.arange(2 * COMPARED), "image")
    most = before
    for number, image in enumerate(images):
        if number == COMPARED:
            started = time.process_time()
        real.compare(image, number % levels, [0, number])
        most = max(most, private_memory())
    return 1000 * (time.process_time() - started) / COMPARED, most - before


def spread(values: np.ndarray, digits: int = 1) -> str:
    """The median, the least and the greatest."""
    middle, least, most = (f"{value:.{digits}f}" for value in (np.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="this packed data set; slices of OASISGEN_OASIS_DIR are packed if not given")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="training slices")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster.connection():
        data = open_data_set(flags.data) if flags.data else packed(folder, validate=6)[1]
        slices, held_out = store(read_slices(data, "train")), searchable(store(read_slices(data, "validate")))
        kinds: dict[tuple[int, str], Searchable] = {}
        for size in flags.sizes:
            home = Path(folder, str(size))
            home.mkdir()
            streamed, mapped = write(home, data, slices.load(), size)
            started = time.monotonic()
            split = searchable(streamed)
            print(f"{size} slices were prepared in {time.monotonic() - started:.0f} s", flush=True)
            kinds[size, "in memory"] = replace(split, slices=mapped)
            kinds[size, "in row groups"] = split
        measure: Any = ray.remote(num_cpus=cluster.ACTOR_CPUS, max_calls=1)(measured)  # a process of its own each time
        found: dict[tuple[int, str], list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):  # the sizes alternate: what else the machine does slows all of them
            for kind, split in kinds.items():
                found[kind].append(ray.get(measure.remote(split, held_out, data.levels)))
        print("| training slices | these lie | ms per slice | ratio to the size before | private memory, MB |")
        print("| --- | --- | --- | --- | --- |")
        for where in ("in memory", "in row groups"):
            before = None
            for size in flags.sizes:
                times, memory = np.transpose(found[size, where])  # (ROUNDS,) each
                ratio = spread(times / before, 2) if before is not None else ""
                print(f"| {size} | {where} | {spread(times)} | {ratio} | {np.median(memory):.0f} |")
                before = times


if __name__ == "__main__":
    main()
