"""The loss of the label decoder: cross-entropy alone, and with soft Dice: `python -m benchmarks.ablation_labels RUN`.
RUN is a finished run on a data set with label maps, with its codes.

Each decoder trains for as many steps on the same code maps in the same order, from the same initial weights, one thread
and is scored on validate. Another seed changes order and initial weights.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from oasisgen import cli, cluster, storage
from oasisgen.config.presets import FULL
from oasisgen.config.train import LabelsConfig
from oasisgen.data.feed import store
from oasisgen.models.bundle import read_bundle
from oasisgen.models.labels import LabelDecoder
from oasisgen.pipelines.labels import label_maps
from oasisgen.quality.reference import open_reference_data_set
from oasisgen.training.encode import read_codes
from oasisgen.training.labels import LabelledCodes, LabelledFeed, confusion, dice_of, label_losses, vectors_of
from oasisgen.training.schedule import cosine
from oasisgen.training.worker import Worker

LOSSES = {"cross-entropy": 0.0, "cross-entropy and soft Dice": 1.0}  # -> --labels.dice-weight
ALONE = Worker(0, 1, torch.device("cpu"), None)


def batches(maps: LabelledFeed, batch_size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Code maps and label maps, epoch after epoch."""
    for epoch in itertools.count():
        for numbers, _ in maps.batches(batch_size, seed, epoch, 0, 1):
            codes, labels = maps.batch(numbers)
            yield torch.from_numpy(codes), torch.from_numpy(labels)


def decoder_of(
    c: LabelsConfig, maps: LabelledFeed, codebook: torch.Tensor, classes: int, steps: int, seed: int
) -> LabelDecoder:
    """A label decoder, trained by the loop of its stage."""
    torch.manual_seed(seed)
    decoder = LabelDecoder(c, codebook.shape[1], classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=c.learning_rate, fused=True)
    weights = torch.tensor([1.0, c.dice_weight])
    for step, (codes, labels) in zip(range(steps), batches(maps, c.batch_size, seed), strict=False):
        optimizer.param_groups[0]["lr"] = cosine(c.learning_rate, step, steps)
        with ALONE.autocast():
            logits = decoder(vectors_of(codes, codebook))
        optimizer.zero_grad(set_to_none=True)
        (label_losses(logits.float(), labels.long()) @ weights).backward()
        optimizer.step()
    return decoder.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="URI of a finished run on a data set with label maps")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--subjects", type=int, default=0, help="as --labels.subjects: learn from the maps of so many")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.run)
    codebook = bundle.vqvae.quantizer.codebook.detach()
    with cluster.connection():
        data = open_reference_data_set(bundle, None)
        codes = storage.join(arguments.run, "codes")
        few = replace(FULL, labels=replace(FULL.labels, subjects=arguments.subjects))
        labels = {split: label_maps(few, data, split) for split in ("train", "validate")}
        train, validate = (
            LabelledCodes(store(read_codes(codes, split, data.shape.code_size)), labels[split]).load()
            for split in labels
        )
        torch.set_num_threads(1)
        classes = [of.name for of in data.label_classes]
        print(
            f"| loss | seed | {' | '.join(classes[1:])} | mean | seconds |\n|{' --- |' * (len(classes) + 3)}",
            flush=True,
        )
        for seed in range(arguments.seeds):
            for name, weight in LOSSES.items():
                c = replace(LabelsConfig(), dice_weight=weight, batch_size=arguments.batch_size)
                started = time.monotonic()
                decoder = decoder_of(c, train, codebook, len(classes), arguments.steps, seed)
                seconds = time.monotonic() - started
                pixels = confusion(decoder, validate, codebook, ALONE, c.validate_slices)
                dice = list(dice_of(pixels, classes).values())
                cells = " | ".join(f"{score:.4f}" for score in (*dice, float(np.mean(dice))))
                print(f"| {name} | {seed} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main, "benchmarks.ablation_labels", continues=False)
