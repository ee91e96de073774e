"""How a masked prior is sampled, each way measured beside the others: `python -m benchmarks.ablation_sampling RUN`."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import torch

from oasisgen import cli, cluster
from oasisgen.data.feed import chunks, store
from oasisgen.data.pixels import to_uint8
from oasisgen.data.slices import read_slices
from oasisgen.models.bundle import Bundle, read_bundle, read_features
from oasisgen.precision import autocast
from oasisgen.quality import batch
from oasisgen.quality.measures import Scores
from oasisgen.quality.reference import open_reference_data_set
from oasisgen.quality.sets import Slices
from oasisgen.sampling.ids import GROUP, level_of
from oasisgen.sampling.sample import latent

SHOWN = ("fid", "kid", "precision", "recall", "density", "coverage", "ms_ssim")


@torch.no_grad()
def groups_of(bundle: Bundle, count: int, mixed: bool) -> Iterator[torch.Tensor]:
    """The first so many sample ids of base seed 0, by the group, (16, H, W) uint8; `mixed`: in bfloat16 where the
    CPU has it."""
    for group in chunks(np.arange(count), GROUP):
        z = torch.from_numpy(np.stack([latent(0, number, bundle.prior.noise_size) for number in group.tolist()]))
        with autocast(z.device, mixed):
            codes = bundle.prior(z, torch.from_numpy(level_of(group, bundle.shape.levels))).codes  # (16, H/4, W/4)
            images = to_uint8(bundle.vqvae.decode(codes)).squeeze(1)  # (16, H, W)
        yield images


def slices(bundle: Bundle, count: int, mixed: bool = True) -> Slices:
    """The same at once, with their levels."""
    return Slices(
        torch.cat([*groups_of(bundle, count, mixed)]).numpy(), level_of(np.arange(count), bundle.shape.levels)
    )


def print_head(first: str, second: str) -> None:
    """The head of a table of what a batch scores, in two columns of its own and those of the measures."""
    columns = (first, second, *SHOWN)
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)


def print_row(first: str, second: str, scores: Scores, with_reference: bool) -> None:
    """A row of it; if asked for, the row of real slices above it."""
    rows = [(first, second, [scores[key].value for key in SHOWN])]
    if with_reference:
        rows.insert(0, ("*real slices*", "", [scores[key].reference for key in SHOWN]))
    for *cells, numbers in rows:
        print(f"| {' | '.join([*cells, *(f'{number:.3f}' for number in numbers)])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="URI of a run or bundle of `--prior masked`")
    parser.add_argument("--count", type=int, default=512, help="slices of each way")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.9, 0.8, 0.7])
    parser.add_argument("--redrawn", type=float, help="share of the codes drawn again; if not given, the bundle's own")
    parser.add_argument("--float32", action="store_true", help="where the CPU has bfloat16, too")
    parser.add_argument("--decoding-steps", type=int, nargs="+", default=[8, 12])
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.run)
    trained_with = bundle.prior.config
    if arguments.redrawn is not None:
        trained_with = replace(trained_with, redrawn=arguments.redrawn)
    with cluster.connection():
        data = open_reference_data_set(bundle, None)
        train, held_out = (store(read_slices(data, split)).load() for split in ("train", "validate"))
        load = partial(read_features, bundle.uri)
        print_head("temperature", "decoding steps")
        for number, (decoding_steps, temperature) in enumerate(
            product(arguments.decoding_steps, arguments.temperatures)
        ):
            bundle.prior.config = replace(trained_with, decoding_steps=decoding_steps, temperature=temperature)
            made = slices(bundle, arguments.count, mixed=not arguments.float32)
            scores = batch.score_sets(load, batch.equal_sets(made, bundle.trained_levels, train, held_out))
            print_row(f"{temperature}", f"{decoding_steps}", scores, with_reference=not number)


if __name__ == "__main__":
    cli.run(main, "benchmarks.ablation_sampling", continues=False)
