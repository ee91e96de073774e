"""The measures of quality, tested as instruments: real slices with known damage, `make instruments`.

The validate cases are cut in two halves, several times. One half stands for a batch, as it is or damaged; the other is
what it is measured against. What undamaged halves score differs from cut to cut: that is the instrument's noise.

Label maps are those of all subjects, cut in two halves as well, because their areas differ a lot between people.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import ray
import safetensors.torch
import torch

from benchmarks.common import real_slices
from benchmarks.label_damages import damages, intact, measured, scores_of_cuts
from oasisgen import cli, cluster
from oasisgen.config.data import OASIS
from oasisgen.config.pack import PackConfig
from oasisgen.config.presets import PRESETS
from oasisgen.data.feed import Feed, Stored, evenly_spaced, store
from oasisgen.data.pack import pack
from oasisgen.data.slices import DataSet, open_data_set, read_slices
from oasisgen.metrics.detectability import MOST
from oasisgen.models.bundle import read_features
from oasisgen.models.features import FeatureNetwork
from oasisgen.quality.batch import equal_sets, mean_scores, score_sets
from oasisgen.quality.detectability import auc, labelled
from oasisgen.quality.searchable import Searchable, searchable
from oasisgen.quality.sets import Sets, Slices, compare_slices, select_levels, take
from oasisgen.training.features import blur
from oasisgen.training.shared_features import features_of

CUTS = 6  # of the validate cases in two halves
DAMAGED_CUTS = 2  # of these are measured damaged too: that is the longer part
COMPARED = 192  # slices of a half that are compared one by one
LABEL_CUTS = 12  # of all subjects in two halves; they are quickly measured
SIGMAS = 3.0  # a measure has moved if it did so by more than this times its noise

Damage = Callable[[Slices, Slices], Slices]
Scored = dict[str, float]


def blurred(half: Slices, train: Slices, sigma: float = 1.2) -> Slices:
    """A Gaussian of so many pixels."""
    x = torch.from_numpy(half.images).unsqueeze(1).float()  # (N, 1, H, W)
    pieces = [blur(piece, torch.full((len(piece),), sigma)) for piece in x.split(32)]
    return half._replace(images=torch.cat(pieces).squeeze(1).round().to(torch.uint8).numpy())


def noisy(half: Slices, train: Slices) -> Slices:
    """Gaussian noise of 8 grey values."""
    noise = np.random.default_rng(0).normal(0, 8, half.images.shape)
    return half._replace(images=np.clip(half.images + noise, 0, 255).round().astype(np.uint8))


def faded(half: Slices, train: Slices) -> Slices:
    """Contrast changed by a gamma of 0.8."""
    return half._replace(images=(255 * (half.images / 255) ** 0.8).round().astype(np.uint8))


def lower_levels(half: Slices, train: Slices) -> Slices:
    """Nothing of the upper half of the levels."""
    return take(half, half.levels < OASIS.levels // 2)


def lower_levels_doubled(half: Slices, train: Slices) -> Slices:
    """The same, and as many training slices of these levels: in all, as many slices as of all levels."""
    its, others = (lower_levels(slices, train) for slices in (half, train))
    return Slices(np.concatenate([its.images, others.images]), np.concatenate([its.levels, others.levels]))


def ten_repeated(half: Slices, train: Slices) -> Slices:
    """Ten training slices over and over."""
    rows = np.tile(evenly_spaced(len(train.levels), 10), -(-len(half.levels) // 10))[: len(half.levels)]
    return Slices(train.images[rows], train.levels[rows])


def copies(half: Slices, train: Slices) -> Slices:
    """Training slices, all different."""
    return Slices(train.images, train.levels)


def shifted_copies(half: Slices, train: Slices) -> Slices:
    """The same, shifted by four pixels down and to the right."""
    return Slices(np.roll(train.images, (4, 4), (1, 2)), train.levels)


def mirrored_copies(half: Slices, train: Slices) -> Slices:
    """The same, left and right exchanged."""
    return Slices(np.ascontiguousarray(train.images[..., ::-1]), train.levels)


def misfiled_copies(half: Slices, train: Slices) -> Slices:
    """The same, each under the name of a level four above or below its own."""
    return Slices(train.images, np.where(train.levels + 4 < OASIS.levels, train.levels + 4, train.levels - 4))


def wrong_levels(half: Slices, train: Slices) -> Slices:
    """Each slice under the name of a level eight above its own."""
    return half._replace(levels=(half.levels + 8) % OASIS.levels)


NOISY = {"fid": 1, "kid": 1, "precision": -1, "coverage": -1, "density": -1, "ssim_real": -1, "detectability": 1}

# What must move, and where to. Of the rest nothing is asked: a blurred slice may well be more like the average.
DAMAGES: list[tuple[str, Damage, dict[str, int]]] = [
    ("softened", partial(blurred, sigma=0.5), {"detectability": 1}),
    ("blurred", blurred, {"fid": 1, "kid": 1, "precision": -1, "coverage": -1, "density": -1, "detectability": 1}),
    ("noisy", noisy, NOISY),
    ("faded", faded, {"fid": 1, "kid": 1, "precision": -1, "coverage": -1}),
    ("half the levels missing", lower_levels, {"fid": 1, "kid": 1, "recall": -1, "coverage": -1}),
    ("half the levels missing, as many slices", lower_levels_doubled, {"fid": 1, "kid": 1}),
    (
        "ten training slices repeated",
        ten_repeated,
        {"fid": 1, "kid": 1, "recall": -1, "coverage": -1, "ms_ssim": 1, "suspected_copies": 1},
    ),
    ("copies of training slices", copies, {"suspected_copies": 1, "copy_ratio": -1, "ssim_train_max": 1}),
    ("copies, shifted by 4 pixels", shifted_copies, {"suspected_copies": 1, "copy_ratio": -1, "ssim_train_max": 1}),
    ("copies, mirrored", mirrored_copies, {"suspected_copies": 1, "copy_ratio": -1, "ssim_train_max": 1}),
    ("copies, filed four levels off", misfiled_copies, {"suspected_copies": 1, "copy_ratio": -1, "ssim_train_max": 1}),
    ("slices of wrong levels", wrong_levels, {"ssim_real": -1}),
]


def levels_of(count: int) -> np.ndarray:
    """The levels of so many slices, all alike."""
    return np.resize(np.arange(OASIS.levels), count)


def halves(held_out: Feed, seed: int) -> tuple[Slices, Slices]:
    """All held-out slices, of one half of the cases and of the other."""
    everything = select_levels(held_out, levels_of(len(held_out)))
    assert everything.subjects is not None
    subjects = np.random.default_rng(seed).permutation(np.unique(everything.subjects))
    first = np.isin(everything.subjects, subjects[: len(subjects) // 2])
    return take(everything, first), take(everything, ~first)


def as_feed(slices: Slices) -> Feed:
    assert slices.subjects is not None
    return Feed([{"level": slices.levels, "case": slices.subjects, "subject": slices.subjects, "image": slices.images}])


def read_scores(
    load: Callable[[], FeatureNetwork], batch: Slices, train: Searchable, reference: Slices
) -> dict[str, float]:
    """Every measure of a batch, as jobs/generate.py takes them."""
    held_out = as_feed(reference)
    sets = equal_sets(batch, list(range(OASIS.levels)), train.load(), held_out)
    telling_apart = tell_apart(sets)  # beside the rest
    some = evenly_spaced(len(batch.levels), COMPARED)
    stored = searchable(Stored(tuple(ray.put(block) for block in held_out.blocks)))
    compared = compare_slices(Slices(batch.images[some], batch.levels[some]), train, stored, 0)
    real = compare_slices(select_levels(held_out, levels_of(COMPARED)), train, stored, 0)
    scores = mean_scores(compared, real) | score_sets(load, sets)
    return {key: score.value for key, score in scores.items()} | {"detectability": ray.get(telling_apart)}


def tell_apart(sets: Sets) -> ray.ObjectRef:
    """Detectability of these slices, which no VQ-VAE has decoded: nor has it those that they are compared with."""
    pair = [labelled(take(its, evenly_spaced(len(its.levels), MOST))) for its in (sets.real, sets.synthetic)]
    return ray.remote(auc).options(num_cpus=cluster.ACTOR_CPUS).remote(*pair)


def own_features(data: DataSet, out: str, train: Stored) -> Callable[[], FeatureNetwork]:
    """The feature network of the data set, as jobs/train.py finds or trains it; checkpoints go to `out`."""
    config = replace(PRESETS["full"][1], data=data.uri, out=out)
    network = FeatureNetwork(data.shape)
    network.load_state_dict(safetensors.torch.load(features_of(data, config, train, None).weights))
    return partial(lambda network: network, network.eval().requires_grad_(False))


def show(
    label: str, clean: Sequence[Scored], damaged: Sequence[Scored], expected: dict[str, int], noise: Scored
) -> int:
    """Print the row of a damage, from its scores in the first few of the cuts; how many measures do not see it."""
    cells, failed = [], 0
    for name in clean[0]:
        shift = float(np.mean([ours[name] - intact[name] for ours, intact in zip(damaged, clean, strict=False)]))
        cell = f"{np.mean([scores[name] for scores in clean]) + shift:.3f}"
        if name in expected:
            seen = shift * expected[name] > SIGMAS * noise[name]
            failed += not seen
            cell = f"**{cell}**" if seen else f"{cell} NOT SEEN"
        cells.append(cell)
    print(f"| {label} | {' | '.join(cells)} |", flush=True)
    return failed


def show_clean(what: str, clean: Sequence[Scored]) -> Scored:
    """Print the head of a table and what intact halves score; the noise of each measure."""
    names = list(clean[0])
    noise = {name: float(np.std([scores[name] for scores in clean], ddof=1)) for name in names}
    print(f"\n{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}; {what}")
    print(f"\n| batch | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    print(f"| real | {' | '.join(f'{np.mean([s[n] for s in clean]):.3f}' for n in names)} |")
    print(f"| *its noise* | {' | '.join(f'*{noise[n]:.3f}*' for n in names)} |", flush=True)
    return noise


def measure_slices(data: DataSet, home: str, model: str | None) -> int:
    """The table of damaged slices; how many measures did not see what they must."""
    slices, held_out = (store(read_slices(data, split)) for split in ("train", "validate"))
    load = partial(read_features, model) if model else own_features(data, f"{home}/run", slices)
    train = searchable(slices)
    cuts = [halves(held_out.load(), seed) for seed in range(CUTS)]
    clean = [read_scores(load, batch, train, reference) for batch, reference in cuts]
    noise, failed = show_clean(f"{len(cuts[0][0].levels)} slices", clean), 0
    for label, damage, expected in DAMAGES:
        damaged = [
            read_scores(
                load, damage(batch, select_levels(train.load(), levels_of(len(batch.levels)))), train, reference
            )
            for batch, reference in cuts[:DAMAGED_CUTS]
        ]
        failed += show(label, clean, damaged, expected, noise)
    return failed


def measure_label_maps(data: DataSet) -> int:
    """The table of damaged label maps; how many measures did not see what they must. It needs no network."""
    ways = damages([of.name for of in data.label_classes])
    maps, subjects = measured(data, [intact, *(damage for _, damage, _ in ways)])
    clean, *scores = scores_of_cuts(maps, subjects, LABEL_CUTS)
    noise = show_clean(f"{len(subjects)} label maps of {len(np.unique(subjects))} subjects", clean)
    return sum(
        show(label, clean, damaged, expected, noise) for (label, _, expected), damaged in zip(ways, scores, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="this packed data set; the slices of OASISGEN_OASIS_DIR are packed if not given")
    parser.add_argument("--out", help="keep data set and network here, for another time")
    parser.add_argument("--model", help="see with the network of this run or bundle, and not with that of the data set")
    parser.add_argument("--only", choices=("slices", "labels"), help="only the measures of these")
    arguments = parser.parse_args()
    source = None if arguments.data else real_slices()
    failed = 0
    with tempfile.TemporaryDirectory() as folder, cluster.connection():
        home = str(Path(arguments.out or folder).absolute())
        if source:
            pack(PackConfig(source, f"{home}/data"))
        data = open_data_set(arguments.data or f"{home}/data")
        if arguments.only != "slices" and data.label_classes:
            failed += measure_label_maps(data)
        if arguments.only != "labels":
            failed += measure_slices(data, home, arguments.model)
    sys.exit(f"{failed} measures did not see what they must" if failed else 0)


if __name__ == "__main__":
    cli.run(main, "benchmarks.instruments", continues=False)
