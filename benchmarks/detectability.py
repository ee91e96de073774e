"""How easily a classifier tells a bundle's slices from real ones that were encoded and decoded by the same VQ-VAE:
`python -m benchmarks.detectability RUN`.

The measure of a batch, with more slices, more steps and several seeds, and also on the centre of the slices alone.
Training slices in the place of synthetic ones show what an AUC is if there is nothing to tell.
"""

import argparse
import time
from functools import partial

import numpy as np
import ray

from benchmarks.ablation_sampling import slices
from oasisgen import cli, cluster
from oasisgen.data.feed import store
from oasisgen.data.slices import read_slices
from oasisgen.metrics.detectability import STEPS, Labelled
from oasisgen.models.bundle import read_bundle, read_vqvae
from oasisgen.quality.batch import equal_sets
from oasisgen.quality.detectability import auc, labelled, redraw
from oasisgen.quality.reference import open_reference_data_set


def centre(images: np.ndarray, side: int) -> np.ndarray:
    """The central `side` x `side` pixels of (N, H, W); 0: everything."""
    top, left = ((size - side) // 2 for size in images.shape[1:])
    return images[:, top : top + side, left : left + side].copy() if side else images


def print_row(name: str, side: int, pair: tuple[Labelled, Labelled], seeds: int, steps: int) -> None:
    """Mean, deviation and single values of the AUC over so many seeds."""
    started = time.monotonic()
    real, others = (ray.put(of._replace(images=centre(of.images, side))) for of in pair)
    task = ray.remote(auc).options(num_cpus=cluster.ACTOR_CPUS)
    values = ray.get([task.remote(real, others, seed, steps) for seed in range(seeds)])
    cells = [f"{np.mean(values):.3f}", f"{np.std(values):.3f}", " ".join(f"{value:.3f}" for value in values)]
    part = f"central {side} x {side}" if side else "whole"
    print(f"| {name} | {part} | {' | '.join(cells)} | {time.monotonic() - started:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="URI of a run or bundle")
    parser.add_argument("--count", type=int, default=1024, help="slices of each kind; at most those held out")
    parser.add_argument("--center", type=int, default=96, help="also look at so many central pixels only; 0: do not")
    parser.add_argument("--seeds", type=int, default=3, help="halves and classifiers, each trained from scratch")
    parser.add_argument("--steps", type=int, default=STEPS, help="that a classifier is trained for")
    parser.add_argument("--float32", action="store_true", help="where the CPU has bfloat16, too")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.run)
    with cluster.connection():
        data = open_reference_data_set(bundle, None)
        train, held_out = (store(read_slices(data, split)).load() for split in ("train", "validate"))
        made = slices(bundle, arguments.count, mixed=not arguments.float32)
        synthetic, *real = equal_sets(made, bundle.trained_levels, train, held_out)
        load = partial(read_vqvae, bundle.uri, bundle.digest)
        of_held_out, of_training = (
            labelled(its._replace(images=redraw(load, its.images, not arguments.float32, cluster.Actors())))
            for its in real
        )
        of_batch = labelled(synthetic)
        print(f"\n{len(synthetic.levels)} slices of each kind, {arguments.steps} steps, {arguments.seeds} seeds")
        print("\n| against held-out slices | part | AUC | deviation | each | s |")
        print("| --- | --- | --- | --- | --- | --- |")
        for side in (0, arguments.center) if arguments.center else (0,):
            for name, others in (("training slices", of_training), ("synthetic slices", of_batch)):
                print_row(name, side, (of_held_out, others), arguments.seeds, arguments.steps)


if __name__ == "__main__":
    cli.run(main, "benchmarks.detectability", continues=False)
