"""How the low-rank sample of a masked prior is drawn, each way measured beside the others, copies included:
`python -m benchmarks.ablation_low_rank RUN`. RUN is a finished run, with its codes.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.ablation_sampling import SHOWN, slices
from oasisgen import cli, cluster, storage
from oasisgen.data.feed import store
from oasisgen.data.slices import read_slices
from oasisgen.models.bundle import read_bundle, read_features
from oasisgen.models.masked import MaskedPrior, covariance, shrunk_cholesky
from oasisgen.quality import batch
from oasisgen.quality.measures import Scores
from oasisgen.quality.reference import open_reference_data_set
from oasisgen.quality.searchable import Searchable, searchable
from oasisgen.quality.sets import Slices, compare_slices, select_levels
from oasisgen.training.collapse import all_maps
from oasisgen.training.encode import read_codes

Weights = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Standard normal noise (B, P) and levels (B,) -> weights of the components (B, P)."""

Known = tuple[torch.Tensor, torch.Tensor]
"""The coefficients (N, P) of the code maps of a split, and their levels (N,)."""


def of_maps(prior: MaskedPrior, known: Known, how_many: int, noise: float) -> Weights:
    """The weights of so many maps of the level, chosen at random and added up, with a share of Gaussian noise.

    Their variance is that of the weights of one map.
    """
    coefficients, levels = known
    gaussian = prior.coefficients
    random = torch.Generator().manual_seed(0)

    def weights(z: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(z)
        for _ in range(how_many):
            rows = [np.flatnonzero(levels.numpy() == level) for level in wanted.tolist()]
            chosen = [int(its[int(torch.randint(len(its), (), generator=random))]) for its in rows]
            total += coefficients[chosen] / how_many**0.5
        return (1 - noise**2) ** 0.5 * total + noise * gaussian(z, wanted)

    return weights


def of_own_level(prior: MaskedPrior, known: Known, own: float) -> Weights:
    """Gaussian weights, whose covariance is by the share `own` that of their level, and else that of all levels."""
    coefficients, levels = known
    other, everything = copy.deepcopy(prior), covariance(coefficients)
    for level in range(prior.shape.levels):
        other.cholesky[level] = shrunk_cholesky(coefficients[levels == level], everything, own)
    return other.coefficients


def suspected(made: Slices, count: int, train: Searchable, held_out: Searchable, real: Slices) -> float:
    """The share of the first `count` slices that the copy audit suspects."""
    some = Slices(made.images[:count], made.levels[:count])
    of_real, of_made = (compare_slices(of, train, held_out, 0) for of in (real, some))
    return batch.mean_scores(of_made, of_real)["suspected_copies"].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="URI of a finished run of `--prior masked`")
    parser.add_argument("--count", type=int, default=512, help="slices of each way")
    parser.add_argument("--compared", type=int, default=192, help="slices of each way whose copies are searched for")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.run)
    prior = bundle.prior
    assert isinstance(prior, MaskedPrior)
    with cluster.connection():
        data = open_reference_data_set(bundle, None)
        train, held_out = (searchable(store(read_slices(data, split))) for split in ("train", "validate"))
        codes = storage.join(arguments.run, "codes")
        feeds = (store(read_codes(codes, split, data.shape.code_size)).load() for split in ("train", "validate"))
        maps, unseen = (prior.pca_prior.all_coefficients(all_maps(feed), prior.embedding) for feed in feeds)
        ways: dict[str, Weights] = {
            "Gaussian per level: as shipped": prior.coefficients,
            "Gaussian, 0.8 of it of the level itself": of_own_level(prior, maps, 0.8),
            "Gaussian, 0.4 of it": of_own_level(prior, maps, 0.4),
            "those of held-out maps": of_maps(prior, unseen, 1, 0.0),
            "kernel density, h = 0.3": of_maps(prior, maps, 1, 0.3),
            "kernel density, h = 0.7": of_maps(prior, maps, 1, 0.7),
            "the sum of two maps' weights": of_maps(prior, maps, 2, 0.0),
            "the sum of three maps' weights": of_maps(prior, maps, 3, 0.0),
        }
        real = select_levels(held_out.load(), np.resize(bundle.trained_levels, arguments.compared))
        print(f"\n| weights | {' | '.join(SHOWN)} | suspected copies |\n|{' --- |' * (len(SHOWN) + 2)}", flush=True)
        for label, weights in ways.items():
            prior.coefficients = weights  # type: ignore[method-assign, assignment]
            made = slices(bundle, arguments.count)
            sets = batch.equal_sets(made, bundle.trained_levels, train.load(), held_out.load())
            scores: Scores = batch.score_sets(partial(read_features, bundle.uri), sets)
            copies = suspected(made, arguments.compared, train, held_out, real)
            print(f"| {label} | {' | '.join(f'{scores[key].value:.3f}' for key in SHOWN)} | {copies:.3f} |", flush=True)


if __name__ == "__main__":
    cli.run(main, "benchmarks.ablation_low_rank", continues=False)
