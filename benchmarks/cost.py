"""What batches of many slices cost: `python -m benchmarks.cost --rate 40 --gpu-dollars 1.5`.

Prints hours, requests, storage and dollars for several numbers of slices and GPUs. The rate and the price are yours:
no GPU was measured for this project. docs/cluster.md names where each of the other numbers comes from.
"""

import argparse
import math
from dataclasses import dataclass

HOUR = 3600
LOCK_SECONDS = 4  # between two renewals of the lock, a request each
MEASURED = 2048, 150  # slices whose pixels are read again: for measures, and to be shown in the report
LISTED = 1000  # names in one answer of S3

SLICES = 10**4, 10**6, 10**8
GPUS = 1, 8, 64


@dataclass(frozen=True)
class Rates:
    """What the logs print and what a cloud charges."""

    rate: float  # slices per second and GPU
    cpus: float  # for each GPU
    cpu_ms: float  # of CPU time that a slice's comparison and its PNG take
    fixed_minutes: float  # reading real slices and their scores, and measures: they do not depend on the batch
    part_size: int
    objects: int  # per slice: 1 with PNGs, 2 with label maps too, 0 in the formats of a file per part
    slice_kb: float
    writes: float  # per second that the storage takes
    gpu_dollars: float  # per hour, with its CPUs
    put_dollars: float  # per 1,000 requests that write or list
    get_dollars: float  # per 1,000 requests that read
    gb_dollars: float  # per GB and month


@dataclass(frozen=True)
class Cost:
    """Of one batch."""

    hours: float
    limit: str  # what bounds the speed
    puts: float
    gets: float
    gigabytes: float
    dollars: float  # of GPUs and requests
    monthly: float  # dollars of storage


def cost(slices: int, gpus: int, of: Rates) -> Cost:
    """What a batch of so many slices costs on so many GPUs."""
    speeds = {"GPUs": gpus * of.rate, "CPUs": gpus * of.cpus * 1000 / of.cpu_ms if of.cpu_ms else math.inf}
    speeds["writes"] = of.writes / of.objects if of.objects else math.inf
    limit = min(speeds, key=lambda name: speeds[name])
    hours = slices / speeds[limit] / HOUR + of.fixed_minutes / 60
    parts = math.ceil(slices / of.part_size)
    # A part is its summary, and a file of slices in the formats that have one.
    puts = slices * of.objects + parts * (1 if of.objects else 2) + hours * HOUR / LOCK_SECONDS + parts / LISTED
    # Each summary is read twice, for its digest and for totals; some slices are read again.
    gets = 2 * parts + min(sum(MEASURED), slices if of.objects else parts)
    gigabytes = slices * of.slice_kb / 1e6
    dollars = gpus * hours * of.gpu_dollars + (puts * of.put_dollars + gets * of.get_dollars) / 1000
    return Cost(hours, limit, puts, gets, gigabytes, dollars, gigabytes * of.gb_dollars)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, required=True, help="slices per second and GPU, as the job's log prints")
    parser.add_argument("--gpu-dollars", type=float, required=True, help="price of a GPU with its CPUs, per hour")
    parser.add_argument("--slices", type=int, nargs="+", default=SLICES)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--cpus", type=float, default=8, help="for each GPU")
    parser.add_argument("--cpu-ms", type=float, default=25, help="CPU time of a slice's comparison and PNG")
    parser.add_argument("--fixed-minutes", type=float, default=5, help="that a batch of any size takes")
    parser.add_argument("--part-size", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=1, help="per slice: 0 with --format parquet or webdataset")
    parser.add_argument("--slice-kb", type=float, default=19)
    parser.add_argument("--writes", type=float, default=3500, help="per second that the storage takes")
    parser.add_argument("--put-dollars", type=float, default=0.005, help="per 1,000 requests that write or list")
    parser.add_argument("--get-dollars", type=float, default=0.0004, help="per 1,000 requests that read")
    parser.add_argument("--gb-dollars", type=float, default=0.023, help="per GB and month")
    flags = vars(parser.parse_args())
    sizes, gpus, rates = flags.pop("slices"), flags.pop("gpus"), Rates(**flags)
    print("| slices | GPUs | hours | limited by | writes | reads | GB | dollars | dollars per month |")
    print(f"|{' --- |' * 9}")
    for count in sizes:
        for number in gpus:
            one = cost(count, number, rates)
            print(
                f"| {count:,} | {number} | {one.hours:,.2f} | {one.limit} | {one.puts:,.0f} | {one.gets:,.0f} | "
                f"{one.gigabytes:,.1f} | {one.dollars:,.2f} | {one.monthly:,.2f} |"
            )


if __name__ == "__main__":
    main()
