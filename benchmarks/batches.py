"""What grows on the driver with a batch or the number of batches: `python -m benchmarks.batches <folder or URI>`.

Writes made-up nights and made-up parts of a summary there, and prints how long the page of all batches and the passes
over the summary take. `--objects 1000 10000` writes as many slices too, as a batch of PNGs does, and lists them.
"""

import argparse
import datetime
import json
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa

from oasisgen import cli, storage, tables
from oasisgen.config.folder import SOFTWARE
from oasisgen.config.generate import GateConfig
from oasisgen.data.feed import chunks
from oasisgen.quality.history import read_batches
from oasisgen.quality.measures import MEASURES, OF_SLICES, Score
from oasisgen.quality.rows import read_rows
from oasisgen.quality.summary import BatchSummary, Seconds
from oasisgen.reports.index import write_index
from oasisgen.sampling.formats import SliceWriter
from oasisgen.sampling.parts import READERS, SUMMARY, complete_parts, entry_of, part_uri
from oasisgen.sampling.request import BatchRequest


def made_up_request() -> BatchRequest:
    """A night of 20,000 slices."""
    return BatchRequest(
        model="0123456789abcdef" * 4,
        base_seed=0,
        count=20_000,
        levels=tuple(range(32)),
        ids=None,
        precision="bfloat16",
        format="png",
        reject="none",
        part_size=1000,
        data_fingerprint="f",
        inception=None,
        gate=GateConfig(),
        software=SOFTWARE,
    )


def write_nights(root: str, count: int) -> None:
    """The summary and the manifest of `count` nights; one in nine is quarantined."""
    random = np.random.default_rng(0)
    first = datetime.datetime(2018, 1, 1, 3, tzinfo=datetime.UTC)

    def write(number: int) -> None:
        finished = first + datetime.timedelta(days=number)
        bad = number % 9 == 0
        summary = BatchSummary(
            verdict="quarantined" if bad else "released",
            reasons=("too little variety: ms_ssim is 0.612, must be at most 0.580 (real slices: 0.550)",)
            if bad
            else (),
            scores={key: Score(1 + value, 1.0) for key, value in zip(MEASURES, random.random(99), strict=False)},
            slices=20_000,
            rejected=0,
            slices_per_level={str(level): 625 for level in range(32)},
            request=replace(made_up_request(), base_seed=number),
            features="fedcba9876543210" * 4,
            finished=finished.isoformat(timespec="seconds"),
            seconds=Seconds(slices=3000),
        )
        folder = storage.join(root, f"{finished:%Y-%m-%d}")
        storage.write_text(storage.join(folder, "summary.json"), json.dumps(summary.to_json()))
        storage.write_text(storage.join(folder, "manifest.json"), "{}")

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(write, range(count)))


def write_parts(out: str, parts: int, size: int) -> None:
    """`parts` times the same summary of `size` rows."""
    random = np.random.default_rng(0)
    texts = {name: [random.bytes(32).hex() for _ in range(size)] for name in ("sha256",)}
    texts |= {"file": [f"slices/part-{0:05d}.parquet"] * size, "device": ["cpu AVX512"] * size}
    texts |= {"nearest_case": [f"OAS1_{number % 300:04d}" for number in range(size)]}
    columns = {
        field.name: pa.array(np.arange(size) % 32).cast(field.type) for field in SUMMARY if field.name not in texts
    }
    columns |= {key: pa.array(random.random(size), pa.float32()) for key in OF_SLICES} | texts
    data = tables.to_bytes(pa.table(columns, schema=SUMMARY), size)
    print(f"{parts} parts of {size} rows, {len(data) / 1e6:.2f} MB each")
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda number: storage.write_bytes(part_uri(out, number), data), range(parts)))


def write_slices(out: str, count: int) -> None:
    """`count` objects of 1 kB where a batch has its PNGs, written by as many threads as one task has.

    Prints the rate of the first tenth, of all, and of the last one.
    """
    writer, tenth = SliceWriter(out, "png"), max(1, count // 10)
    seconds = []
    for ids in chunks(np.arange(count), tenth):
        started = time.monotonic()
        png: np.ndarray = np.array([bytes(1000)] * len(ids), object)
        writer({"id": ids, "png": png, "refused": np.array([""] * len(ids))})
        seconds.append(time.monotonic() - started)
    rates = tenth / seconds[0], count / sum(seconds), tenth / seconds[-1]
    print(f"{count} objects: {rates[0]:.0f} per s at first, {rates[1]:.0f} on average, {rates[2]:.0f} at last")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the seconds that the body took, and the most memory that this process has used so far."""
    started = time.monotonic()
    yield
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {time.monotonic() - started:.1f} s; {most:.2f} GB at most so far", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", help="an empty folder or URI")
    parser.add_argument("--nights", type=int, default=3000)
    parser.add_argument("--parts", type=int, default=300)
    parser.add_argument("--rows", type=int, default=10_000, help="of a part")
    parser.add_argument("--objects", type=int, nargs="*", default=[], help="numbers of small slices to write and list")
    flags = parser.parse_args()
    where = storage.absolute(flags.where)
    root, out = storage.join(where, "batches"), storage.join(where, "huge")
    if flags.nights:
        with timed(f"write {flags.nights} nights"):
            write_nights(root, flags.nights)
        with timed("read all of them"):
            nights = read_batches(root)
        with timed("write the page when they are known"):
            write_index(root, nights)
        size = len(storage.read_bytes(storage.join(root, "index.html")))
        print(f"the page has {size / 1e6:.1f} MB")
    if flags.parts:
        with timed("write the parts"):
            write_parts(out, flags.parts, flags.rows)
        with timed("list them"):
            numbers = sorted(complete_parts(out))
        with timed("pass 1: digests and counts"), ThreadPoolExecutor(READERS) as pool:
            entries = list(pool.map(lambda number: entry_of(out, number, flags.rows), numbers))
        with timed("pass 2: totals, and rows to show"):
            read_rows(out, entries, labels=False, suspect=0.01)
    for count in flags.objects:
        home = storage.join(where, f"slices-{count}")
        with timed(f"write {count} objects"):
            write_slices(home, count)
        with timed("list them all, as --verify does"):
            listed = sum(1 for _ in storage.list_files(storage.join(home, "slices")))
        assert listed == count


if __name__ == "__main__":
    cli.run(main, "benchmarks.batches", continues=False)
