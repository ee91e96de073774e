"""The loop that trains the label decoder, on the code maps of real slices and their label maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Feed, Stored, chunks, evenly_spaced
from oasisgen.data.shards import SliceKey
from oasisgen.models.labels import LabelDecoder
from oasisgen.training.schedule import cosine
from oasisgen.training.stage import StageState, non_finite
from oasisgen.training.worker import Worker, unwrap

LOSSES = ("cross_entropy", "dice_loss")  # of a step
SMOOTH = 1.0  # pixels; without it, the Dice of a class that neither map has would be 0 / 0
SCORED = 16  # held-out slices at a time


@dataclass(frozen=True)
class LabelledCodes:
    """The code maps of a split, and the label maps of those slices that have one."""

    codes: Stored  # `case`, `level`, `codes`: of these slices at least
    labels: Stored  # `case`, `level`, `labels`

    def load(self) -> "LabelledFeed":
        """Map both into this process."""
        return LabelledFeed(self.codes.load(), self.labels.load())


class LabelledFeed:
    """Random access to the label maps of a split by number, each with what another feed has of its slice."""

    def __init__(self, slices: Feed, labels: Feed) -> None:
        """`slices` has the slices of these label maps, and may have others: their code maps or images."""
        rows = {key: row for row, key in enumerate(keys_of(slices))}
        self.slices, self.labels = slices, labels
        self.places = np.array([rows[key] for key in keys_of(labels)], np.int64)  # (N,): rows of `slices`

    def __len__(self) -> int:
        return len(self.places)

    def batches(
        self, batch_size: int, seed: int, epoch: int, rank: int, world: int, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `Feed.batches`."""
        return self.labels.batches(batch_size, seed, epoch, rank, world, first)

    def rows_of(self, column: str, numbers: np.ndarray) -> np.ndarray:
        """A column of the slices of some label maps, (len(numbers), …)."""
        return self.slices.rows(self.places[numbers], column)

    def batch(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Code maps (B, h, w) int64 and label maps (B, H, W) uint8."""
        return self.rows_of("codes", numbers).astype(np.int64), self.labels.rows(numbers, "labels")


def keys_of(feed: Feed) -> Iterator[SliceKey]:
    """Case and level of each row."""
    if len(feed):
        yield from zip(feed.column("case").tolist(), feed.column("level").tolist(), strict=True)


def train_labels(
    config: TrainConfig,
    worker: Worker,
    train: LabelledCodes,
    held_out: LabelledCodes,
    codebook: torch.Tensor,
    classes: tuple[str, ...],
) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged after too many rollbacks.

    `codebook` is (K, D), `classes` are the names of the classes, of which the first is the background.
    """
    c = config.labels
    maps, validate = train.load(), held_out.load()
    codebook = codebook.to(worker.device)
    decoder = LabelDecoder(c, codebook.shape[1], len(classes)).to(memory_format=torch.channels_last)
    model = ray.train.torch.prepare_model(decoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    parts = {"model": unwrap(model), "optimizer": optimizer}
    state = StageState(worker, config, "labels", maps, parts, LOSSES)
    weights = torch.tensor([1.0, c.dice_weight], device=worker.device)

    while state.epoch < c.epochs:
        for codes, labels in worker.ahead(maps.batch(numbers) for numbers, _ in state.batches()):
            share = state.share(len(labels))
            optimizer.param_groups[0]["lr"] = state.lr_factor * cosine(c.learning_rate, state.step, state.total_steps)
            with worker.autocast():
                logits = model(vectors_of(codes, codebook))
            losses = label_losses(logits.float(), labels.long())  # (2,)
            optimizer.zero_grad(set_to_none=True)
            (losses @ weights * share).backward()
            optimizer.step()
            state.end_step(*losses, share=share, line=lambda: f"cross-entropy {losses[0].item():.4f}")

        means = state.mean_losses()
        if state.roll_back_if(non_finite(means)):
            continue
        dice = dice_of(confusion(unwrap(model), validate, codebook, worker, c.validate_slices), classes)
        shown = ", ".join(f"{name} {score:.3f}" for name, score in dice.items())
        scores = {dice_key(name): score for name, score in dice.items()}
        state.end_epoch({**means, **scores}, f"cross-entropy {means['cross_entropy']:.4f}, held-out Dice {shown}")


def vectors_of(codes: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The vectors (B, D, h, w) of code maps (B, h, w) int64 in a codebook (K, D)."""
    return F.embedding(codes, codebook).permute(0, 3, 1, 2)  # (B, D, h, w)


def label_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, and one minus the soft Dice of all classes but the background (Milletari et al. 2016,
    arXiv:1606.04797), of logits (B, K, H, W) and classes (B, H, W) int64: (2,).

    Dice is that of each slice, so the mean over a batch does not depend on how ranks share it.
    """
    there = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2)[:, 1:].float()  # (B, K - 1, H, W)
    found = logits.softmax(1)[:, 1:]  # (B, K - 1, H, W)
    overlap, size = (found * there).sum((2, 3)), (found + there).sum((2, 3))  # (B, K - 1) each
    dice = (2 * overlap + SMOOTH) / (size + SMOOTH)
    return torch.stack([F.cross_entropy(logits, labels), 1 - dice.mean()])


@torch.no_grad()
def confusion(
    decoder: LabelDecoder, maps: LabelledFeed, codebook: torch.Tensor, worker: Worker, count: int
) -> torch.Tensor:
    """How many pixels of each class (rows) are decoded as each class (columns): (K, K) int64.

    The pixels are those of `count` evenly spaced slices (0: all), which the ranks share (a collective).
    """
    K = decoder.classes
    pixels = torch.zeros(K * K, device=worker.device, dtype=torch.int64)
    mine = evenly_spaced(len(maps), count)[worker.rank :: worker.world]
    for codes, labels in worker.ahead(maps.batch(numbers) for numbers in chunks(mine, SCORED)):
        with worker.autocast():
            decoded = decoder.label_map(vectors_of(codes, codebook))  # (B, H, W)
        pixels += torch.bincount((labels.long() * K + decoded).flatten(), minlength=K * K)
    worker.sum(pixels)
    return pixels.view(K, K)


def dice_of(pixels: torch.Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Dice of each class but the first, over all slices of a `confusion` together.

    Classes that their label maps do not have are left out.
    """
    real, decoded, both = pixels.sum(1).tolist(), pixels.sum(0).tolist(), pixels.diagonal().tolist()
    return {name: 2 * both[k] / (real[k] + decoded[k]) for k, name in enumerate(classes) if k and real[k]}


def dice_key(name: str) -> str:
    """What the Dice of a class is called in `metrics/labels.jsonl`."""
    return f"dice_{name.replace(' ', '_')}"
