"""The loop that trains a segmenter on pairs of slice and label map, real or synthetic."""

from collections.abc import Sequence

import numpy as np
import ray.train.torch
import torch

from oasisgen.config.segmenter import SegmenterTraining
from oasisgen.data.feed import Feed, RowNumbers, Stored
from oasisgen.lock import LockProof
from oasisgen.models.segmenter import Segmenter
from oasisgen.training.labels import LOSSES, label_losses
from oasisgen.training.launch import Stage, complete
from oasisgen.training.schedule import cosine
from oasisgen.training.stage import StageState, non_finite
from oasisgen.training.worker import Worker, unwrap


def segmenter_of(
    config: SegmenterTraining, parts: Sequence[Stored], draws: int, classes: int, lock: LockProof | None = None
) -> Segmenter:
    """A segmenter of `classes` classes, in evaluation mode, trained on Ray Train unless that is done.

    Each of `parts` has pairs, rows of `image` (H, W) uint8 and `labels` (H, W) uint8. The segmenter learns from one
    part after another (`draw_pairs`). Each epoch draws `draws` pairs, at least a batch, so the number of steps does not
    depend on how many there are. Raises as `complete`, and UserError if MONAI is not installed.
    """
    segmenter = Segmenter(config.segmenter, classes)
    stage = Stage("segmenter", train_segmenter, {"parts": list(parts), "draws": draws, "classes": classes})
    segmenter.load_state_dict(complete(stage, config, lock)["model"])
    return segmenter.eval()


def train_segmenter(config: SegmenterTraining, worker: Worker, parts: list[Stored], draws: int, classes: int) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged after too many rollbacks."""
    c, feed = config.segmenter, stored_together(parts).load()
    drawn = draw_pairs([len(part.load()) for part in parts], c.epochs * draws, config.seed)
    segmenter = Segmenter(c, classes).to(memory_format=torch.channels_last)
    model = ray.train.torch.prepare_model(segmenter)
    optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    saved = {"model": unwrap(model), "optimizer": optimizer}
    state = StageState(worker, config, "segmenter", RowNumbers(draws), saved, LOSSES)
    weights = torch.tensor([1.0, c.dice_weight], device=worker.device)

    while state.epoch < c.epochs:
        of_epoch = drawn[state.epoch * draws :]
        for images, labels in worker.ahead(pair_batch(feed, of_epoch[numbers]) for numbers, _ in state.batches()):
            share = state.share(len(labels))
            optimizer.param_groups[0]["lr"] = state.lr_factor * cosine(c.learning_rate, state.step, state.total_steps)
            with worker.autocast():
                logits = model(images)
            losses = label_losses(logits.float(), labels.long())  # (2,)
            optimizer.zero_grad(set_to_none=True)
            (losses @ weights * share).backward()
            optimizer.step()
            state.end_step(*losses, share=share, line=lambda: f"cross-entropy {losses[0].item():.4f}")

        means = state.mean_losses()
        if state.roll_back_if(non_finite(means)):
            continue
        state.end_epoch(means, ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in means.items()))


def draw_pairs(parts: Sequence[int], draws: int, seed: int) -> np.ndarray:
    """The pair that each of `draws` draws takes, (draws,), from parts of so many pairs; they are numbered through.

    The first part is drawn from first, the last part last, each for an equal share of the draws. Within a part, all
    pairs are drawn in one random order, over and over, so equally often, give or take one.
    """
    firsts, shares = np.cumsum([0, *parts[:-1]]), np.array_split(np.arange(draws), len(parts))
    orders = [np.random.default_rng(seed).permutation(pairs) for pairs in parts]
    return np.concatenate(
        [first + np.resize(order, len(share)) for first, order, share in zip(firsts, orders, shares, strict=True)]
    )


def pair_batch(feed: Feed, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices and label maps of some rows, both (B, H, W) uint8."""
    return feed.rows(numbers, "image"), feed.rows(numbers, "labels")


def stored_together(parts: Sequence[Stored]) -> Stored:
    """The rows of several feeds in the object store as one."""
    return Stored(tuple(block for part in parts for block in part.blocks))
