"""Does an independent segmenter see faults of label maps that `label_fit` does not? `python -m benchmarks.label_dice
--data DATA [--batch BATCH]`.

The segmenter is that of the utility probe, trained on real pairs of the training split. Dice is between a slice's own
label map and the one that the segmenter finds in it: the mean over classes, of all slices of a subject together. Of
real held-out pairs, intact and damaged; and of the pairs of a batch. The noise is the standard deviation of the
difference between two halves of the subjects, over many cuts: a fault is seen at three times that.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.label_damages import Damage, damages, enlarged, intact, swapped
from oasisgen import cli, cluster
from oasisgen.config.segmenter import SegmenterTraining
from oasisgen.data.feed import Stored, chunks, store
from oasisgen.data.slices import open_data_set
from oasisgen.metrics.segmentation import dice_by_subject
from oasisgen.models.segmenter import Segmenter
from oasisgen.pipelines.probe import draw, open_batch, read_synthetic
from oasisgen.quality.label_maps import measure_labels, spread_pairs
from oasisgen.training.segmenter import segmenter_of

CUTS = 100
AT_ONCE = 16

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Images and label maps, both (N, H, W) uint8, levels (N,) and subjects (N,)."""


def one_pixel(images: np.ndarray, labels: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label maps one pixel too far to the right."""
    return images, np.roll(labels, 1, 2)


def coarse(images: np.ndarray, labels: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label maps of a quarter of the pixels, enlarged again."""
    return images, labels[:, ::2, ::2].repeat(2, 1).repeat(2, 2)


def in_a_tenth(
    damage: Damage, images: np.ndarray, labels: np.ndarray, levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same, of every tenth pair alone."""
    images, labels = images.copy(), labels.copy()
    images[::10], labels[::10] = damage(images[::10], labels[::10], levels[::10])
    return images, labels


def dice_of_classes(found: np.ndarray, labels: np.ndarray, subjects: np.ndarray, classes: int) -> np.ndarray:
    """Dice of each class but the first and each subject, of label maps (N, H, W): (K - 1, S)."""
    of_classes = []
    for k in range(1, classes):
        there, seen = labels == k, found == k
        pixels = there.sum((1, 2)), seen.sum((1, 2)), (there & seen).sum((1, 2))
        of_classes.append(dice_by_subject(*pixels, subjects))
    return np.array(of_classes)


def dice(found: np.ndarray, labels: np.ndarray, subjects: np.ndarray, classes: int) -> np.ndarray:
    """Dice of each subject, the mean over classes: (S,)."""
    scores: np.ndarray = np.nanmean(dice_of_classes(found, labels, subjects, classes), 0)
    return scores


def scores_of(
    segment: Callable[[np.ndarray], np.ndarray], pairs: Pairs, found: np.ndarray, damage: Damage, classes: int
) -> np.ndarray:
    """`label_fit` and Dice of each subject's pairs, damaged: (2, S). `found` is what the segmenter finds undamaged."""
    before, labels, levels, subjects = pairs
    images, labels = damage(before, labels, levels)
    fit = measure_labels(images, labels, levels, classes).fit
    of_subjects = [np.nanmean(fit[subjects == name]) for name in np.unique(subjects)]
    return np.array([of_subjects, dice(found if images is before else segment(images), labels, subjects, classes)])


def noise_of(scores: np.ndarray) -> np.ndarray:
    """How much two halves of the subjects differ, (2, S) -> (2,)."""
    half, differences = scores.shape[1] // 2, []
    for seed in range(CUTS):
        order = np.random.default_rng(seed).permutation(scores.shape[1])
        differences.append(scores[:, order[:half]].mean(1) - scores[:, order[half:]].mean(1))
    return np.std(differences, 0)


@torch.no_grad()
def label_maps(segmenter: Segmenter, images: np.ndarray) -> np.ndarray:
    return np.concatenate([segmenter.label_map(torch.from_numpy(some)).numpy() for some in chunks(images, AT_ONCE)])


def pairs_of(stored: Stored) -> Pairs:
    feed = stored.load()
    rows = np.arange(len(feed))
    images, labels = feed.rows(rows, "image"), feed.rows(rows, "labels")
    return images, labels, feed.column("level"), feed.column("subject")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="URI of a packed data set with label maps")
    parser.add_argument("--batch", help="URI of a batch with label maps")
    parser.add_argument("--pairs", type=int, default=2048, help="real pairs in an epoch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster.connection():
        data = open_data_set(arguments.data)
        names = [of.name for of in data.label_classes]
        train, held_out = map(store, spread_pairs(data))
        started = time.monotonic()
        segmenter = segmenter_of(SegmenterTraining(folder), [train], arguments.pairs, len(names))
        print(f"trained in {time.monotonic() - started:.0f} s", flush=True)
        pairs, segment = pairs_of(held_out), partial(label_maps, segmenter)
        fluid, grey, white = map(names.index, ("CSF", "grey matter", "white matter"))
        swap = partial(swapped, one=grey, other=white)
        ways: list[tuple[str, Damage]] = [
            ("label maps shifted by 1 pixel", one_pixel),
            ("label maps of half the resolution", coarse),
            *((label, damage) for label, damage, _ in damages(names)),
            ("ventricles doubled", partial(enlarged, fluid=fluid, share=1.0)),
            ("grey and white matter swapped in a tenth", partial(in_a_tenth, swap)),
        ]
        found = segment(pairs[0])
        real = scores_of(segment, pairs, found, intact, len(names))
        noise = noise_of(real)
        print(f"\n| {len(pairs[0])} held-out pairs | label_fit | times its noise | Dice | times its noise |")
        print("| --- | --- | --- | --- | --- |")
        print(f"| real | {real[0].mean():.3f} | | {real[1].mean():.3f} | |")
        print(f"| *noise* | *{noise[0]:.3f}* | | *{noise[1]:.3f}* | |", flush=True)
        for label, damage in ways:
            scores = scores_of(segment, pairs, found, damage, len(names)).mean(1)
            cells = (
                f"{now:.3f} | {(now - was) / of:.1f}" for now, was, of in zip(scores, real.mean(1), noise, strict=True)
            )
            print(f"| {label} | {' | '.join(cells)} |", flush=True)
        if arguments.batch:
            batch = open_batch(arguments.batch, quarantined=True)
            rows = draw(len(batch.slices), len(pairs[0]), 0)
            feed = read_synthetic(batch, rows, data).load()
            images, labels = (feed.rows(np.arange(len(rows)), name) for name in ("image", "labels"))
            fit = np.nanmean(measure_labels(images, labels, rows, len(names)).fit)
            likeness = dice(segment(images), labels, np.arange(len(rows)), len(names))
            print(f"| synthetic | {fit:.3f} | | {np.nanmean(likeness):.3f} | |")


if __name__ == "__main__":
    cli.run(main, "benchmarks.label_dice", continues=False)
