"""Training on slices that do not fit into memory, `python -m benchmarks.stream`: speed, memory, time to a first step.

The slices of a data set are deformed over and over until there are as many as asked for. The loop of stage 1 trains on
them for some time, in turn with the feed `memory`, and with the feed `stream` and a small object store.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import ROUNDS, packed, watched_memory
from oasisgen import cli, cluster
from oasisgen.config.presets import PRESETS

if TYPE_CHECKING:
    from oasisgen.data.slices import DataSet
    from oasisgen.training.stage import StageState

WARM_UP = 10.0  # seconds of training that do not count
STORE = "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"  # Ray's own variable
CONFIG = PRESETS["full"][1]


class Enough(Exception):
    """The loop has trained long enough."""


@dataclass(frozen=True)
class Measured:
    """What one run shows."""

    first_step: float  # seconds from the start of the loop
    slices_per_s: float
    waited: float  # share of the time in which the loop waited for slices
    private: list[float]  # MB of all processes together, at a quarter, at half, … of the time
    store: float  # MB of the object store in use, at most


def timed(file: str, seconds: float, **inputs: Any) -> None:
    """The loop of stage 1 for so long; writes when it started, when each step ended, and how long slices took."""
    from oasisgen.data.feed import Feed
    from oasisgen.training.stage import StageState
    from oasisgen.training.vqvae import train_vqvae

    started, ended, waited = time.monotonic(), [], [0.0]
    end_step, crops = StageState.end_step, Feed.crops

    def end(state: "StageState", *losses: torch.Tensor, **rest: Any) -> None:
        end_step(state, *losses, **rest)
        ended.append(time.monotonic())
        if ended[-1] > started + seconds:
            raise Enough

    def wait(feed: Feed, *arguments: Any) -> Any:
        asked = time.monotonic()
        found = crops(feed, *arguments)
        waited[0] += time.monotonic() - asked
        return found

    StageState.end_step, Feed.crops = end, wait  # type: ignore[method-assign, assignment]
    with suppress(Enough):
        train_vqvae(**inputs)
    Path(file).write_text(json.dumps({"started": started, "ended": ended, "waited": waited[0]}))


def measure(feed: str, data: "DataSet", seconds: float) -> Measured:
    """Train with a feed for so many seconds."""
    from oasisgen.data.slices import source_of
    from oasisgen.training.launch import Stage, fit

    with tempfile.TemporaryDirectory() as out:
        config = replace(CONFIG, data=data.uri, out=out)  # its feed is that of the inputs
        inputs = {split: source_of(feed, data, split) for split in ("train", "validate")}
        with watched_memory() as samples:
            fit(Stage("vqvae", timed, {"file": f"{out}/steps.json", "seconds": seconds, **inputs}), config)
        found = json.loads(Path(out, "steps.json").read_text())
    started, ended = found["started"], found["ended"]
    steps = [end for end in ended if end > started + WARM_UP]
    rate = (len(steps) - 1) / (steps[-1] - steps[0]) * config.vqvae.batch_size
    trained = [sample for sample in samples if ended[0] <= sample.time <= ended[-1]]
    quarters = [trained[round(share * (len(trained) - 1))] for share in (0.25, 0.5, 0.75, 1.0)]
    return Measured(
        first_step=ended[0] - started,
        slices_per_s=rate,
        waited=found["waited"] / (ended[-1] - started),
        private=[sum(sample.private) for sample in quarters],
        store=max(sample.store for sample in samples),
    )


def run_alone(feed: str, arguments: argparse.Namespace) -> Measured:
    """`measure`, in a process of its own, whose Ray has a small object store if slices are streamed."""
    command = [sys.executable, "-m", "benchmarks.stream", "--home", arguments.home, "--seconds", str(arguments.seconds)]
    variables = {STORE: str(int(arguments.store_gb * 1e9))} if feed == "stream" else {}
    done = subprocess.run([*command, "--measure", feed], env=os.environ | variables, stdout=subprocess.PIPE, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def prepare(arguments: argparse.Namespace) -> None:
    """Write the data set."""
    from benchmarks.deformed import enlarged
    from oasisgen.data.feed import store
    from oasisgen.data.slices import open_data_set, read_slices

    with tempfile.TemporaryDirectory() as folder, cluster.connection():
        data = open_data_set(arguments.data) if arguments.data else packed(folder, validate=6)[1]
        splits = {split: store(read_slices(data, split)).load() for split in ("train", "validate")}
        enlarged(data, splits, arguments.home, arguments.slices)


def main() -> None:
    from oasisgen.data.slices import open_data_set

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="this packed data set; slices of OASISGEN_OASIS_DIR are packed if not given")
    parser.add_argument("--home", required=True, help="URI for the enlarged data set, which is kept")
    parser.add_argument("--slices", type=int, default=100_000, help="training slices")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training in each run")
    parser.add_argument("--store-gb", type=float, default=1.0, help="object store of runs that stream")
    parser.add_argument("--feeds", nargs="+", default=["memory", "stream"], choices=("memory", "stream"))
    parser.add_argument("--measure", metavar="FEED", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        with cluster.connection():
            found = measure(arguments.measure, open_data_set(arguments.home), arguments.seconds)
        print(json.dumps(asdict(found)))
        return
    prepare(arguments)
    rounds = [{feed: run_alone(feed, arguments) for feed in arguments.feeds} for _ in range(ROUNDS)]
    print("| feed | slices/s | waiting for slices | first step after | private memory, MB | object store, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for feed in arguments.feeds:
        its = [each[feed] for each in rounds]
        rate, waited, first = (
            statistics.median(getattr(one, name) for one in its) for name in ("slices_per_s", "waited", "first_step")
        )
        private = ", ".join(f"{mb:.0f}" for mb in its[-1].private)
        store = max(one.store for one in its)
        print(f"| {feed} | {rate:.1f} | {waited:.1%} | {first:.1f} s | {private} | {store:.0f} |")
    if len(arguments.feeds) > 1:
        ratios = [each["stream"].slices_per_s / each["memory"].slices_per_s for each in rounds]
        print(f"\nstream to memory: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    cli.run(main, "benchmarks.stream", continues=False)
