"""The part of a training job that only data sets with label maps have: the label decoder."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from oasisgen import storage
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Source, Stored, evenly_spaced, store
from oasisgen.data.pairs import drawn, few_of, labelled
from oasisgen.data.slices import DataSet, read_labels
from oasisgen.errors import UserError
from oasisgen.lock import Lock
from oasisgen.models.labels import LabelDecoder
from oasisgen.models.vqvae import VQVAE
from oasisgen.pipelines.feeds import MOST_LABELLED
from oasisgen.progress import say
from oasisgen.reports.run import SHOWN, LabelResults
from oasisgen.training import history
from oasisgen.training.encode import read_codes, require_same_codes
from oasisgen.training.labels import LabelledCodes, LabelledFeed, dice_key, keys_of, train_labels, vectors_of
from oasisgen.training.launch import Stage, complete


@dataclasses.dataclass(frozen=True)
class TrainedLabels:
    """A trained label decoder, and what a report says of it."""

    decoder: LabelDecoder
    results: LabelResults


def train_label_decoder(
    config: TrainConfig,
    data: DataSet,
    load_vqvae: Callable[[], VQVAE],
    held_out: Source,
    codes: str,
    held: Lock,
) -> TrainedLabels | None:
    """Train the label decoder on the run's code maps; returns at once if that is done.

    `held_out` are the slices of the validate split, and `codes` is the digest of the VQ-VAE that encoded both splits.
    Returns None if the data set has no label maps, or too few for a batch.
    """
    if not data.label_classes:
        return None
    train, validate = (label_maps(config, data, split) for split in ("train", "validate"))
    least, there, there_too = config.labels.batch_size, len(train.load()), len(validate.load())
    if there < least or not there_too:
        counts = f"{there} slices of train, of which a batch needs {least}, and {there_too} of validate"
        say("labels", f"no label decoder is trained: {counts} have a label map")
        return None
    codes_uri = storage.join(config.out, "codes")
    require_same_codes(storage.join(config.out, "labels"), codes, held.write)

    def beside(labels: Stored, split: str) -> LabelledCodes:
        maps = read_codes(codes_uri, split, data.shape.code_size, frozenset(keys_of(labels.load())))
        return LabelledCodes(store(maps), labels)

    codebook = load_vqvae().quantizer.codebook.detach()
    held_out_codes = beside(validate, "validate")
    classes = tuple(of.name for of in data.label_classes)
    inputs = {
        "train": beside(train, "train"),
        "held_out": held_out_codes,
        "codebook": codebook,
        "classes": classes,
    }
    state = complete(Stage("labels", train_labels, inputs), config, held.proof)
    decoder = LabelDecoder(config.labels, codebook.shape[1], len(data.label_classes))
    decoder.load_state_dict(state["model"])
    slices = LabelledFeed(held_out.load(), validate.load())
    examples = examples_of(decoder, codebook, slices, held_out_codes.load())
    epochs = history.of(state)
    last = epochs[-1].metrics
    dice = {name: last[dice_key(name)] for name in classes if dice_key(name) in last}
    return TrainedLabels(decoder, LabelResults(classes, epochs, dice, examples))


def few_label_maps(config: TrainConfig, data: DataSet) -> frozenset[tuple[str, int]] | None:
    """Case and level of the label maps of `--labels.subjects` training subjects; None: all are learned from.

    Raises UserError unless so many subjects have a label map, and they have enough for a batch.
    """
    c = config.labels
    if not c.subjects or not data.label_classes:
        return None
    there = labelled(data, "train")
    few = there.names(few_of(there.subjects, c.subjects, "labels.subjects"))
    if len(few) < c.batch_size:
        raise UserError(
            f"labels.subjects is {c.subjects}: they have {len(few)} label maps, and a batch needs {c.batch_size} "
            "(--labels.batch-size)"
        )
    return few


def label_maps(config: TrainConfig, data: DataSet, split: str) -> Stored:
    """The label maps of a split that the label decoder learns from or is scored on. Raises as `few_label_maps`."""
    wanted = few_label_maps(config, data) if split == "train" else None
    if wanted is not None:
        say("labels", f"learned from {len(wanted)} label maps of {config.labels.subjects} subjects alone")
    elif config.feed == "stream" and (wanted := drawn(data, split, MOST_LABELLED[split])):
        say("labels", f"{split}: {len(wanted)} label maps, drawn at random, are used: more are not held in memory")
    return store(read_labels(data, split, wanted))


def examples_of(
    decoder: LabelDecoder, codebook: torch.Tensor, slices: LabelledFeed, maps: LabelledFeed
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """SHOWN held-out slices, evenly spaced: image, label map, and the label map that is decoded from its codes."""
    numbers: np.ndarray = evenly_spaced(len(maps), SHOWN)
    codes, labels = maps.batch(numbers)
    decoded = decoder.eval().label_map(vectors_of(torch.from_numpy(codes), codebook)).numpy()  # (SHOWN, H, W)
    return list(zip(slices.rows_of("image", numbers), labels, decoded, strict=True))
