"""In which order to learn from real and synthetic pairs: `python -m benchmarks.ablation_pairs BATCH`. BATCH is a
finished batch with label maps; the real pairs are those of the data set that it was compared with.

The segmenter of the utility probe trains for as many steps on real pairs alone, and on both: mixed, or on synthetic
pairs first and on real ones last. One thread; scored on validate. Another seed draws other pairs, and changes initial
weights and order.
"""

import argparse
import time

import numpy as np
import torch

from benchmarks.label_dice import dice_of_classes, label_maps
from oasisgen import cli, cluster, storage
from oasisgen.config.probe import ProbeConfig
from oasisgen.config.segmenter import SegmenterConfig
from oasisgen.data.feed import Feed, RowNumbers
from oasisgen.models.segmenter import Segmenter
from oasisgen.pipelines.probe import open_batch, open_real, pairs_of
from oasisgen.training.labels import label_losses
from oasisgen.training.schedule import cosine
from oasisgen.training.segmenter import draw_pairs, pair_batch, stored_together
from oasisgen.training.worker import Worker

ALONE = Worker(0, 1, torch.device("cpu"), None)


def orders_of(synthetic: int, real: int, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Ways of learning from so many synthetic pairs and the real ones that follow them: the pair of each draw."""
    alone, third = synthetic + draw_pairs([real], draws, seed), draws // 3
    return {
        "real alone": alone,
        "both, mixed": draw_pairs([synthetic + real], draws, seed),
        "synthetic first, for a half": draw_pairs([synthetic, real], draws, seed),
        "synthetic first, for a third": np.concatenate([draw_pairs([synthetic], third, seed), alone[third:]]),
    }


def segmenter_of(c: SegmenterConfig, feed: Feed, drawn: np.ndarray, classes: int, seed: int) -> Segmenter:
    """A segmenter, trained by the loop of its stage on the pairs that are `drawn`, (epochs * draws,)."""
    torch.manual_seed(seed)
    segmenter = Segmenter(c, classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(segmenter.parameters(), lr=c.learning_rate, fused=True)
    weights, epochs = torch.tensor([1.0, c.dice_weight]), np.split(drawn, c.epochs)
    steps = [
        of_epoch[numbers]
        for epoch, of_epoch in enumerate(epochs)
        for numbers, _ in RowNumbers(len(of_epoch)).batches(c.batch_size, seed, epoch, 0, 1)
    ]
    for step, numbers in enumerate(steps):
        optimizer.param_groups[0]["lr"] = cosine(c.learning_rate, step, len(steps))
        images, labels = map(torch.from_numpy, pair_batch(feed, numbers))
        with ALONE.autocast():
            logits = segmenter(images)
        optimizer.zero_grad(set_to_none=True)
        (label_losses(logits.float(), labels.long()) @ weights).backward()
        optimizer.step()
    return segmenter.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("batch", help="URI of a finished batch with label maps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--subjects", type=int, default=0, help="real pairs of this many subjects alone; 0: of all")
    arguments = parser.parse_args()
    uri = storage.absolute(arguments.batch)
    with cluster.connection():
        config = ProbeConfig(uri, subjects=arguments.subjects)
        batch, data = open_batch(uri, quarantined=True), open_real(config, uri)
        classes = [of.name for of in data.label_classes]
        print(
            f"| trained on | seed | {' | '.join(classes[1:])} | seconds |\n|{' --- |' * (len(classes) + 2)}", flush=True
        )
        torch.set_num_threads(1)
        for seed in arguments.seeds:
            pairs = pairs_of(ProbeConfig(uri, subjects=arguments.subjects, seed=seed), batch, data)
            parts = [pairs.synthetic, pairs.few or pairs.real]
            synthetic, real = (len(part.load()) for part in parts)
            feed, held_out = stored_together(parts).load(), pairs.held_out.load()
            rows = np.arange(len(held_out))
            images, labels = held_out.rows(rows, "image"), held_out.rows(rows, "labels")
            draws = config.segmenter.epochs * synthetic
            for name, drawn in orders_of(synthetic, real, draws, seed).items():
                started = time.monotonic()
                segmenter = segmenter_of(config.segmenter, feed, drawn, len(classes), seed)
                seconds = time.monotonic() - started
                dice = dice_of_classes(label_maps(segmenter, images), labels, held_out.column("subject"), len(classes))
                cells = " | ".join(f"{score:.4f}" for score in np.nanmean(dice, 1))
                print(f"| {name} | {seed} | {cells} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main, "benchmarks.ablation_pairs", continues=False)
