"""Where labels belong: in a decoder of their own, as shipped, or in the VQ-VAE as channels beside the image:
`python -m benchmarks.labels_in_vqvae --data DATA`. DATA is a packed data set with label maps.

Both VQ-VAEs train for as many steps on the same crops in the same order, one thread, and are scored on validate; the
label decoder then trains on code maps of whole slices. Another seed changes order and initial weights.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.ablation_labels import decoder_of
from benchmarks.models import descend
from oasisgen import cli, cluster
from oasisgen.config.presets import FULL
from oasisgen.config.train import VQVAEConfig
from oasisgen.data.feed import Feed, chunks, evenly_spaced, store
from oasisgen.data.pairs import labelled, read_pairs
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.data.slices import open_data_set
from oasisgen.metrics.ssim import ssim, ssim_loss
from oasisgen.models.labels import LabelDecoder
from oasisgen.models.vqvae import VQVAE, Reconstruction
from oasisgen.precision import autocast
from oasisgen.training.labels import LabelledFeed, dice_of, label_losses
from oasisgen.training.vqvae import cropped, error_scale

LABEL_BATCH = 8  # code maps per step of the label decoder
SCORED = 256  # slices of validate
AT_ONCE = 16


class Joint(VQVAE):
    """A VQ-VAE of image and classes: K one-hot channels beside the image, K logits beside what it decodes."""

    def __init__(self, config: VQVAEConfig, classes: int) -> None:
        super().__init__(config)
        self.classes, half = classes, config.channels // 2
        first = nn.Conv2d(1 + classes, half, 4, stride=2, padding=1)  # (B, C/2, H/2, W/2)
        last = nn.ConvTranspose2d(half, 1 + classes, 4, stride=2, padding=1)  # (B, 1 + K, H, W)
        for layer in (first, last):  # as VQVAE does
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.encoder[0], self.decoder[-2], self.decoder[-1] = first, last, nn.Identity()

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None, whole: int = 0) -> Reconstruction:
        """(B, 1 + K, H, W) -> Reconstruction, whose `image` (B, 1 + K, H, W) is an image in [-1, 1] and K logits."""
        y = super().forward(x, generator, whole)
        return y._replace(image=torch.cat([y.image[:, :1].tanh(), y.image[:, 1:]], 1))


def input_of(model: VQVAE, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What a VQ-VAE encodes of images (B, 1, H, W) in [-1, 1] and classes (B, H, W) int64."""
    if not isinstance(model, Joint):
        return x
    return torch.cat([x, F.one_hot(labels, model.classes).permute(0, 3, 1, 2)], 1)  # (B, 1 + K, H, W)


def vqvae_of(make: Callable[[], VQVAE], pairs: Feed, steps: int, seed: int) -> VQVAE:
    """A VQ-VAE with averaged weights, trained by the loop of stage 1; a `Joint` with the label decoder's loss, too."""
    c, random, weights = FULL.vqvae, torch.Generator().manual_seed(seed), torch.tensor([1.0, FULL.labels.dice_weight])
    torch.manual_seed(seed)
    model, averaged = make().to(memory_format=torch.channels_last), make().requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    feeds = pairs, Feed([{"image": block["labels"]} for block in pairs.blocks])
    scale, size = error_scale(pairs, c), c.crop_of(pairs.image_size)
    epochs = (pairs.batches(c.batch_size, seed, epoch, 0, 1) for epoch in itertools.count())
    for step, (numbers, points) in zip(range(steps), itertools.chain.from_iterable(epochs), strict=False):
        images, labels = (torch.from_numpy(cropped(feed, numbers, points, size)) for feed in feeds)  # (B, h, w) each
        x, labels = to_unit(images.unsqueeze(1)), labels.long()  # (B, 1, h, w), (B, h, w)
        with autocast(x.device):
            y = model(input_of(model, x, labels), random, c.batch_size)
        image, logits = y.image[:, :1].float(), y.image[:, 1:].float()  # (B, 1, h, w), (B, K, h, w)
        loss = F.mse_loss(image, x) / scale + c.ssim_weight * ssim_loss(image, x) + y.quantizer_loss
        if isinstance(model, Joint):
            loss = loss + label_losses(logits, labels) @ weights
        descend(loss, model, averaged, optimizer, c, step, steps)
    return averaged.eval()


def label_decoder_of(vqvae: VQVAE, pairs: Feed, classes: int, steps: int, seed: int) -> LabelDecoder:
    """A label decoder, trained for an epoch of so many steps on code maps of evenly spaced slices."""
    rows = evenly_spaced(len(pairs), steps * LABEL_BATCH)
    named = {column: pairs.rows(rows, column) for column in ("case", "level", "labels")}
    images = (to_unit(torch.from_numpy(pairs.rows(some, "image")).unsqueeze(1)) for some in chunks(rows, AT_ONCE))
    codes = np.concatenate([vqvae.encode(x).numpy() for x in images])  # (N, H/4, W/4)
    maps = LabelledFeed(Feed([named | {"codes": codes}]), Feed([named]))
    c = replace(FULL.labels, batch_size=LABEL_BATCH)
    return decoder_of(c, maps, vqvae.quantizer.codebook, classes, steps, seed)


@torch.no_grad()
def cells(model: VQVAE, decoder: LabelDecoder | None, blank: bool, held_out: Feed, classes: list[str]) -> str:
    """Mean SSIM of 8-bit reconstructions, Dice of each class over all slices together, and codes in use.

    `decoder` is none for a `Joint`, which does not see the label maps if `blank`.
    """
    K, scores, used = len(classes), [], set()
    pixels = torch.zeros(K * K, dtype=torch.int64)
    for rows in chunks(held_out.sample(SCORED), AT_ONCE):
        images, labels = (torch.from_numpy(held_out.rows(rows, column)) for column in ("image", "labels"))
        x = input_of(model, to_unit(images.unsqueeze(1)), labels.long())  # (B, 1, H, W) or (B, 1 + K, H, W)
        if blank:
            x[:, 1:] = 0.0
        y = model(x)
        found = decoder.label_map(model.quantizer.embed(y.codes)) if decoder else y.image[:, 1:].argmax(1)  # (B, H, W)
        scores.append(ssim(to_uint8(y.image[:, 0]), images))
        pixels += torch.bincount((labels.long() * K + found).flatten(), minlength=K * K)
        used |= set(y.codes.unique().tolist())
    dice = " | ".join(f"{score:.4f}" for score in dice_of(pixels.view(K, K), classes).values())
    return f"{torch.cat(scores).mean():.4f} | {dice} | {len(used)}"


def pairs_of(uri: str) -> tuple[list[str], Feed, Feed]:
    """The classes of a data set, and the slices of train and validate that have a label map, with it."""
    feeds = []
    with cluster.connection():
        data = open_data_set(uri)
        for split in ("train", "validate"):
            there = labelled(data, split)
            pairs = store(read_pairs(data, split, there.names(np.arange(len(there.cases))))).load()
            feeds.append(Feed([{name: pairs.column(name) for name in ("case", "level", "image", "labels")}]))
    return [of.name for of in data.label_classes], feeds[0], feeds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="URI of a packed data set with label maps")
    parser.add_argument("--steps", type=int, default=1000, help="of each VQ-VAE")
    parser.add_argument("--label-steps", type=int, default=500, help="of the label decoder")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    classes, train, held_out = pairs_of(arguments.data)
    torch.set_num_threads(1)
    print(f"| labels | seed | SSIM | {' | '.join(classes[1:])} | codes | CPU s |\n|{' --- |' * (len(classes) + 4)}")
    for seed in range(arguments.seeds):
        started = time.process_time()
        vqvae = vqvae_of(partial(VQVAE, FULL.vqvae), train, arguments.steps, seed)
        first = time.process_time() - started
        decoder = label_decoder_of(vqvae, train, len(classes), arguments.label_steps, seed)
        spent = f"{first:.0f} + {time.process_time() - started - first:.0f}"
        row = cells(vqvae, decoder, False, held_out, classes)
        print(f"| label decoder (`full`), predicts | {seed} | {row} | {spent} |", flush=True)
        started = time.process_time()
        joint = vqvae_of(partial(Joint, FULL.vqvae, len(classes)), train, arguments.steps, seed)
        spent = f"{time.process_time() - started:.0f}"
        for blank, name in ((False, "VQ-VAE, reconstructs"), (True, "the same without labels, predicts")):
            row = cells(joint, None, blank, held_out, classes)
            print(f"| {name} | {seed} | {row} | {spent} |", flush=True)


if __name__ == "__main__":
    cli.run(main, "benchmarks.labels_in_vqvae", continues=False)
