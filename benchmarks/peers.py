"""Ours beside what others would use, trained for the same time on the same cores and measured alike:
`python -m benchmarks.peers --data DATA --only ldm --minutes 5 --prior-minutes 5`.

Each peer writes its row to a file in --out, so the table grows over several runs. `peer_models.py` says what the peers
are and what differs from their published recipes.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch

from benchmarks.peer_models import Diffusion, Ours, Peer, Transformer, WithDCGAN, WithMasked
from oasisgen import cli
from oasisgen.cluster import TORCH_VARIABLES
from oasisgen.config.data import Shape
from oasisgen.config.presets import BASELINE, FULL
from oasisgen.data.feed import Feed, chunks
from oasisgen.data.pixels import to_unit
from oasisgen.data.slices import DataSet, image_columns, open_data_set, schema_of, shards_of
from oasisgen.metrics.diversity import variety
from oasisgen.metrics.fidelity import fidelity
from oasisgen.metrics.ssim import ssim
from oasisgen.models.features import FeatureNetwork
from oasisgen.precision import autocast
from oasisgen.quality.batch import equal_sets, mean_scores
from oasisgen.quality.measures import OF_SLICES
from oasisgen.quality.nearest import Comparison, RealSlices, index_in_memory
from oasisgen.quality.sets import Slices, select_levels
from oasisgen.sampling.ids import GROUP, level_of
from oasisgen.training.shared_features import find

PEERS: dict[str, tuple[str, Callable[[Feed, Shape], Peer]]] = {
    "full": ("**`full`: VQ-VAE, masked prior**", partial(WithMasked, preset=FULL)),
    "baseline": ("`baseline`: VQ-VAE, DCGAN", partial(WithDCGAN, preset=BASELINE)),
    "rotation": (
        "VQ-VAE of `full`, vector-quantize-pytorch's rotation trick",
        partial(Ours, quantizer="rotation trick"),
    ),
    "vqvae": ("MONAI VQ-VAE, 64 x 64 codes", partial(Transformer, halvings=2)),
    "transformer": ("MONAI VQ-VAE, 16 x 16 codes, transformer", Transformer),
    "ldm": ("MONAI AutoencoderKL, latent diffusion", Diffusion),
}
STAGE_1_ONLY = "rotation", "vqvae"
SHOWN = ("fid", "precision", "recall", "coverage", "ms_ssim", "ssim_real", "suspected_copies")


class Spent(NamedTuple):
    """What a stage has used up so far."""

    minutes: float  # of the clock by which it is trained
    wall_minutes: float
    cpu_minutes: float  # of all threads
    steps: int


def train(step: Callable[[int, int], None], minutes: Sequence[float], cpu_threads: int = 0) -> Iterator[Spent]:
    """Do training steps for the longest of `minutes`; pause after each of them. Pauses do not count.

    Minutes are wall time or, of so many threads, CPU time of each: then what else runs on the cores does not matter.
    """
    wall, cpu, number = 0.0, 0.0, 0
    for minute in sorted(minutes):
        while (spent := cpu / cpu_threads if cpu_threads else wall) < 60 * minute:
            wall_before, cpu_before = time.monotonic(), time.process_time()
            expected = round(number * 60 * max(minutes) / spent) if spent else 0
            step(number, max(expected, number + 1))
            wall, cpu = wall + time.monotonic() - wall_before, cpu + time.process_time() - cpu_before
            number += 1
        yield Spent(minute, wall / 60, cpu / 60, number)


def load(data: DataSet, split: str) -> Feed:
    """A split in memory, without Ray."""
    columns, schema = image_columns(data), schema_of(data.description)
    tables = [table for shard in shards_of(data, split) for table in shard.read(schema, columns.of(schema))]
    return Feed([columns.decode(table) for table in tables])


@torch.no_grad()
def reconstruction_ssim(peer: Peer, images: np.ndarray) -> float:
    """Mean SSIM of (N, H, W) uint8 and their reconstructions."""
    parts = [torch.from_numpy(part) for part in chunks(images, 4)]
    return float(torch.cat([ssim(peer.reconstruct(part), part) for part in parts]).mean())


@torch.no_grad()
def sampled(peer: Peer, count: int) -> tuple[np.ndarray, float]:
    """The slices of the first ids (N, H, W) uint8, and how many a second."""
    started = time.monotonic()
    with autocast(torch.device("cpu")):
        images = torch.cat([peer.sample(ids) for ids in chunks(np.arange(count), GROUP)])
    return images.numpy(), count / (time.monotonic() - started)


def compared(slices: Slices, real: RealSlices) -> pa.Table:
    """`level` and the measures of each slice; a level below 0 is unknown and is found."""
    subjects = [None] * len(slices.levels) if slices.subjects is None else slices.subjects
    rows = [
        real.compare(image, int(level), [0, number, 1], subject)
        for number, (image, level, subject) in enumerate(zip(slices.images, slices.levels, subjects, strict=True))
    ]
    columns = dict(zip(Comparison._fields, zip(*rows, strict=True), strict=True))
    return pa.table({name: columns[name] for name in ("level", *OF_SLICES)})


@torch.no_grad()
def measures(made: Slices, train: Feed, held_out: Feed, network: FeatureNetwork) -> dict[str, dict[str, float]]:
    """Every measure of the slices, beside what real ones score in their place."""
    real = RealSlices(index_in_memory(train), index_in_memory(held_out))
    of_made = compared(made, real)
    made = made._replace(levels=of_made["level"].to_numpy())
    scores = mean_scores(of_made, compared(select_levels(held_out, made.levels), real))
    sets = equal_sets(made, made.levels.tolist(), train, held_out)
    parts = [[network(to_unit(torch.from_numpy(x)[:, None])) for x in chunks(its.images, 32)] for its in sets]
    of_synthetic, of_real, of_training = (torch.cat(each) for each in parts)  # (N, F) each
    value = {"ms_ssim": variety(*sets.synthetic), **fidelity(of_real, of_synthetic)}
    reference = {"ms_ssim": variety(*sets.training), **fidelity(of_real, of_training)}
    value |= {key: score.value for key, score in scores.items()}
    reference |= {key: score.reference for key, score in scores.items()}
    return {"value": {key: value[key] for key in SHOWN}, "reference": {key: reference[key] for key in SHOWN}}


def row_of(name: str, arguments: argparse.Namespace, data: DataSet) -> dict[str, Any]:
    """Train a peer and measure it."""
    trained = find(data, FULL.features)
    if not trained:
        sys.exit(f"{data.uri} has no feature network yet: train a model on it first")
    network = FeatureNetwork(data.shape).eval()
    network.load_state_dict(safetensors.torch.load(trained.weights))
    images, held_out = load(data, "train"), load(data, "validate")
    torch.manual_seed(0)
    label, make = PEERS[name]
    peer = make(images, data.shape)
    scored = held_out.rows(held_out.sample(arguments.scored), "image")
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    cpu_threads = arguments.threads if arguments.cpu_time else 0
    row: dict[str, Any] = {"label": label, "machine": machine, "threads": arguments.threads, "stage_1": []}
    for spent in train(peer.stage_1, arguments.minutes, cpu_threads):
        row["stage_1"].append({**spent._asdict(), "ssim": reconstruction_ssim(peer, scored)})
        print(name, row["stage_1"][-1], flush=True)
    if arguments.prior_minutes and name not in STAGE_1_ONLY:
        (spent,) = train(peer.stage_2, [arguments.prior_minutes], cpu_threads)
        made, rate = sampled(peer, arguments.slices)
        ids = np.arange(arguments.slices)
        levels = level_of(ids, data.levels) if peer.conditional else np.full_like(ids, -1)
        row["stage_2"] = {**spent._asdict(), "slices": arguments.slices, "slices_per_s": rate}
        row["stage_2"] |= measures(Slices(made, levels), images, held_out, network)
        print(name, row["stage_2"], flush=True)
    return row


def print_tables(rows: Sequence[dict[str, Any]]) -> None:
    """Both tables in Markdown."""
    print("\n| stage 1 | machine | threads | minutes | wall | CPU | steps | SSIM |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        for at in row["stage_1"]:
            minutes = f"{at['minutes']:g} | {at['wall_minutes']:.1f} | {at['cpu_minutes']:.1f}"
            head = f"{row['label']} | {row['machine']} | {row['threads']}"
            print(f"| {head} | {minutes} | {at['steps']:,} | {at['ssim']:.4f} |")
    print(f"\n| stage 2 | minutes | steps | slices | {' | '.join(SHOWN)} | slices/s |")
    print("| --- " * (len(SHOWN) + 5) + "|")
    for row in rows:
        if at := row.get("stage_2"):
            of_real, of_made = (" | ".join(f"{at[of][key]:.3f}" for key in SHOWN) for of in ("reference", "value"))
            print(f"| *real slices* | | | {at['slices']} | {of_real} | |")
            head = f"{row['label']} | {at['minutes']:g} | {at['steps']:,} | {at['slices']}"
            print(f"| {head} | {of_made} | {at['slices_per_s']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="URI of a packed data set; without one, the rows in --out are printed")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[5.0, 15.0, 30.0], help="of stage 1, to score after"
    )
    parser.add_argument("--prior-minutes", type=float, default=60.0, help="of stage 2; 0: stage 1 only")
    parser.add_argument("--slices", type=int, default=512, help="sampled from each peer, and measured")
    parser.add_argument("--scored", type=int, default=64, help="validation slices whose SSIM is computed")
    parser.add_argument("--cpu-time", action="store_true", help="minutes of CPU time per thread, on shared cores")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", default="peers", help="folder of the rows")
    arguments = parser.parse_args()
    if not TORCH_VARIABLES.items() <= os.environ.items():  # as our workers have it; it is read when a process starts
        command = [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | TORCH_VARIABLES)
    torch.set_num_threads(arguments.threads)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only if arguments.data else ():
        row = row_of(name, arguments, open_data_set(arguments.data))
        (out / f"{name}.json").write_text(json.dumps(row, indent=2) + "\n")
    print_tables([json.loads(file.read_text()) for name in PEERS if (file := out / f"{name}.json").exists()])


if __name__ == "__main__":
    cli.run(main, "benchmarks.peers", continues=False)
