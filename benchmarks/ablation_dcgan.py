"""How the DCGAN is trained, each way measured beside the others: `python -m benchmarks.ablation_dcgan RUN [NAME …]`.

Each trains on the code maps of a run for as many steps, in the same order, one thread. What differs from `full` is in
its name.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch

from benchmarks.ablation_sampling import print_head, print_row, slices
from oasisgen import cli, cluster, storage
from oasisgen.config.data import Shape
from oasisgen.config.presets import FULL
from oasisgen.data.feed import Feed, epoch_batches, store
from oasisgen.data.slices import read_slices
from oasisgen.models.bundle import read_bundle, read_features
from oasisgen.models.dcgan import DCGAN
from oasisgen.precision import autocast
from oasisgen.quality import batch
from oasisgen.quality.reference import open_reference_data_set
from oasisgen.training.averaging import average
from oasisgen.training.dcgan import adversarial_step, both_adams, discriminator_of, initial_dcgan
from oasisgen.training.encode import read_codes

CHANGES: dict[str, dict[str, Any]] = {
    "full": {},
    "no noise": {"noise": 0.0},
    "noise 0.2": {"noise": 0.2},
    "noise 0.5": {"noise": 0.5},
    "no R1": {"r1_weight": 0.0},
    "R1 0.5": {"r1_weight": 0.5},
    "R1 20": {"r1_weight": 20.0},
    "rate 5e-4": {"learning_rate": 5e-4},
    "rate 5e-4, R1 20": {"learning_rate": 5e-4, "r1_weight": 20.0},
    "BatchNorm, not spectral norm": {"spectral_norm": False},
    "cross-entropy": {"loss": "bce"},
    "no shift": {"shift": 0},
    "no PCA prior": {"pca_prior": False, "components": 0},
    "last generator": {"weight_ema_decay": 0.0},
}


def train(gan: DCGAN, maps: Feed, steps: int, shape: Shape) -> DCGAN:
    """The averaged DCGAN after so many steps."""
    c = gan.config
    torch.manual_seed(0)
    averaged = DCGAN(c, gan.embedding, shape).requires_grad_(False)
    averaged.load_state_dict(gan.state_dict())
    discriminator = discriminator_of(gan, shape)
    networks = (
        gan.generator.to(memory_format=torch.channels_last),
        discriminator.to(memory_format=torch.channels_last),
    )
    optimizers = both_adams(c, networks)
    order = chain.from_iterable(epoch_batches(len(maps), c.batch_size, 0, epoch, 0, 1) for epoch in count())
    for step, (numbers, _) in enumerate(islice(order, steps)):
        real = gan.embedding.embed(torch.from_numpy(maps.rows(numbers, "codes").astype("int64")))  # (B, C, h, w)
        levels = torch.from_numpy(maps.rows(numbers, "level").astype("int64"))  # (B,)
        with autocast(real.device):
            adversarial_step(gan, networks, optimizers, real, levels, step, torch.Generator().manual_seed(step))
        average(averaged.generator, gan.generator, c.weight_ema_decay, step)
    return averaged.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="URI of a run, whose code maps and measures are used")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(CHANGES)}")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--channels", type=int, default=FULL.dcgan.channels)
    parser.add_argument("--count", type=int, default=512, help="slices of each way")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.run)
    codebook = bundle.vqvae.quantizer.codebook.detach()
    with cluster.connection():
        data = open_reference_data_set(bundle, None)
        split = {name: store(read_slices(data, name)).load() for name in ("train", "validate")}
        maps = store(read_codes(storage.join(arguments.run, "codes"), "train", data.shape.code_size)).load()
        load = partial(read_features, bundle.uri)
        torch.set_num_threads(1)
        print_head("DCGAN", "maps/s")
        for number, name in enumerate(arguments.names or CHANGES):
            c = replace(FULL.dcgan, channels=arguments.channels, **CHANGES[name])
            torch.manual_seed(0)
            gan = initial_dcgan(replace(FULL, data="", out="", dcgan=c), maps, codebook, data.shape)
            started = time.monotonic()
            gan = train(gan, maps, arguments.steps, data.shape)
            rate = arguments.steps * c.batch_size / (time.monotonic() - started)
            made = slices(replace(bundle, prior=gan), arguments.count)
            scores = batch.score_sets(
                load, batch.equal_sets(made, bundle.trained_levels, split["train"], split["validate"])
            )
            print_row(name, f"{rate:.0f}", scores, with_reference=not number)


if __name__ == "__main__":
    cli.run(main, "benchmarks.ablation_dcgan", continues=False)
