"""What it costs to find the nearest training slice among many: `python -m benchmarks.neighbours`.

For several sizes of the training split, prints the CPU time to compare a slice, also as a ratio to that with the size
before, and the private memory of the process that compares it. Splits that are larger than the data set's own are
filled up with its slices, turned, stretched and moved a little. They lie in a temporary folder: 100,000 slices take
10 GB there, and 1.1 GB of the object store.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray

from benchmarks.common import packed, private_memory
from benchmarks.deformed import enlarged
from oasisgen import actor, cli, cluster
from oasisgen.data.feed import Feed, store
from oasisgen.data.slices import DataSet, open_data_set, read_slices, stream_slices
from oasisgen.data.stream import Streamed
from oasisgen.quality.nearest import RealSlices, SearchIndex, load_index
from oasisgen.quality.searchable import Searchable, searchable

SIZES = 1_000, 9_664, 100_000  # training slices
ROUNDS = 24  # in each, all sizes have their turn: what else the machine does slows all of them
WARM_UP = 8  # rounds before
COMPARED = 8  # slices of each round
MEMORY_OF = 64  # slices


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
    streamed = stream_slices(enlarged(data, {"train": train}, str(folder), count), "train")
    with open(folder / "pixels", "wb") as pixels:
        for piece in streamed.load().pieces():
            pixels.write(piece["image"].tobytes())
    return streamed, Mapped(str(folder / "pixels"), data.image_size, tuple(shard.rows for shard in streamed.shards))


def touched(index: SearchIndex) -> SearchIndex:
    """The same, after all its memory was read once: a process that compares many slices maps it only once."""
    for block in index.blocks:
        for thumbnails in (block.as_they_lie, block.centred):
            sum(part.sum() for part in (thumbnails.pixels, thumbnails.coarse, thumbnails.fine))
    for piece in index.slices.blocks:
        if "image" in piece:
            piece["image"][:, ::16].sum()  # 4 kB are a page
    return index


def timed(sizes: list[Searchable], held_out: Searchable, levels: int) -> np.ndarray:
    """Milliseconds of CPU time to compare a slice: (len(sizes), ROUNDS)."""
    actor.set_up()
    cv2.setNumThreads(1)
    real = [RealSlices(touched(load_index(train)), load_index(held_out)) for train in sizes]
    images = held_out.load().rows(np.arange((WARM_UP + ROUNDS) * COMPARED), "image")
    took = np.empty((len(sizes), WARM_UP + ROUNDS))
    for turn, size in product(range(WARM_UP + ROUNDS), range(len(sizes))):
        started = time.process_time()
        for number in range(turn * COMPARED, (turn + 1) * COMPARED):
            real[size].compare(images[number], number % levels, [0, number])
        took[size, turn] = 1000 * (time.process_time() - started) / COMPARED
    return took[:, WARM_UP:]


def memory(train: Searchable, held_out: Searchable, levels: int) -> tuple[float, float]:
    """MB of private memory, at most, that comparing slices takes, and that the process takes with it."""
    actor.set_up()
    cv2.setNumThreads(1)
    before = most = private_memory()
    real = RealSlices(load_index(train), load_index(held_out))
    for number, image in enumerate(real.held_out.slices.rows(np.arange(MEMORY_OF), "image")):
        real.compare(image, number % levels, [0, number])
        most = max(most, private_memory())
    return most - before, most


def spread(values: np.ndarray) -> str:
    """The median and the quartiles."""
    least, middle, most = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


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
        # Each call has a process of its own: one that has prepared slices is of another environment.
        alone: Any = ray.remote(
            num_cpus=cluster.ACTOR_CPUS, max_calls=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
        )
        times, takes = alone(timed), alone(memory)
        print("| training slices | these lie | ms per slice | ratio to the size before | private MB | to compare |")
        print("| --- | --- | --- | --- | --- | --- |")
        for where in ("in memory", "in row groups"):
            splits = [kinds[size, where] for size in flags.sizes]
            took = ray.get(times.remote(splits, held_out, data.levels))
            ratios = ["", *(spread(more / less) for less, more in pairwise(took))]
            for size, split, its, ratio in zip(flags.sizes, splits, took, ratios, strict=True):
                own, whole = ray.get(takes.remote(split, held_out, data.levels))
                print(f"| {size} | {where} | {spread(its)} | {ratio} | {whole:.0f} | {own:.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main, "benchmarks.neighbours", continues=False)
