"""The loop of the label decoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from oasisgen.config.folder import differences
from oasisgen.config.train import LabelsConfig
from oasisgen.data.feed import Feed, store
from oasisgen.data.shards import Columns
from oasisgen.data.slices import DataSet, read_labels
from oasisgen.errors import UserError
from oasisgen.pipelines.labels import few_label_maps, label_maps
from oasisgen.pipelines.train import settings_of
from oasisgen.training import checkpoint, history
from oasisgen.training.encode import read_codes
from oasisgen.training.labels import LabelledCodes, LabelledFeed, dice_of, keys_of, label_losses, train_labels
from oasisgen.training.launch import Stage, complete
from tests.conftest import tiny


def test_the_losses_are_small_for_right_labels_and_do_not_depend_on_how_a_batch_is_shared() -> None:
    labels = torch.randint(0, 4, (6, 16, 16), generator=torch.Generator().manual_seed(0))
    right = 20.0 * torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2)  # (6, 4, 16, 16)
    assert (label_losses(right, labels) < 1e-3).all()
    cross_entropy, dice = label_losses(right, (labels + 1) % 4)
    assert cross_entropy > 10
    assert dice > 0.9
    logits = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    halves = [label_losses(logits[half], labels[half]) for half in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(label_losses(logits, labels), (halves[0] + halves[1]) / 2)


def test_dice_is_of_the_classes_that_label_maps_have() -> None:
    pixels = torch.tensor([[90, 0, 0, 5], [10, 30, 0, 0], [0, 20, 50, 0], [0, 0, 0, 0]])
    assert dice_of(pixels, ["none", "a", "b", "c"]) == {"a": 2 * 30 / (40 + 50), "b": 2 * 50 / (70 + 50)}


def test_a_label_map_is_paired_with_the_code_map_of_its_slice() -> None:
    case = np.array(["a", "a", "b"], object)
    codes = Feed([{"case": case, "level": np.array([3, 4, 3]), "codes": np.arange(3).reshape(3, 1, 1)}])
    some = {"case": np.array(["b", "a"], object), "level": np.array([3, 4])}
    pairs = LabelledFeed(codes, Feed([some | {"labels": np.array([7, 8]).reshape(2, 1, 1)}]))
    assert len(pairs) == 2
    maps, labels = pairs.batch(np.array([1, 0]))
    assert maps.ravel().tolist() == [1, 2]
    assert labels.ravel().tolist() == [8, 7]
    assert len(Feed([])) == 0


@pytest.mark.usefixtures("in_process")
def test_the_stage_learns_resumes_and_is_what_an_undisturbed_one_is(
    data: DataSet, trained: Path, tmp_path: Path
) -> None:
    codes = {split: store(read_codes(str(trained / "codes"), split, (64, 64))) for split in ("train", "validate")}
    pairs = {split: LabelledCodes(codes[split], store(read_labels(data, split))) for split in codes}
    vqvae = checkpoint.restore_vqvae(checkpoint.best(str(trained / "vqvae"), "ssim"), tiny(data, trained).vqvae)
    codebook = vqvae.quantizer.codebook
    classes = tuple(of.name for of in data.label_classes)
    inputs = {"train": pairs["train"], "held_out": pairs["validate"], "codebook": codebook, "classes": classes}
    settings = LabelsConfig(channels=8, epochs=2, batch_size=16, learning_rate=1e-2, validate_slices=16)
    config = replace(tiny(data, tmp_path / "run"), labels=settings)

    whole = complete(Stage("labels", train_labels, inputs), config)
    first, last = history.of(whole)
    assert {"dice_CSF", "dice_grey_matter", "dice_white_matter"} < last.metrics.keys()
    assert last.metrics["cross_entropy"] < first.metrics["cross_entropy"]
    assert history.read(str(tmp_path / "run" / "metrics"), "labels") == [first, last]

    newest = max((tmp_path / "run" / "labels").glob("checkpoint_*/state.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])  # as if the job had been killed while it wrote
    again = complete(Stage("labels", train_labels, inputs), config)
    assert history.of(again)[-1].metrics == pytest.approx(last.metrics)
    for name, value in whole["model"].items():
        assert torch.allclose(again["model"][name], value), name


def test_a_label_decoder_may_learn_from_the_label_maps_of_a_few_subjects_alone(data: DataSet, trained: Path) -> None:
    config = tiny(data, trained)
    few = replace(config, labels=replace(config.labels, subjects=2))
    learned = label_maps(few, data, "train").load()
    names = few_label_maps(few, data)
    assert names is not None
    assert set(zip(learned.column("case").tolist(), learned.column("level").tolist(), strict=True)) == names
    assert len(learned) == 2 * data.levels
    assert set(learned.column("case")) < set(label_maps(config, data, "train").load().column("case"))
    assert few_label_maps(config, data) is None
    settings, older = settings_of(config, data), settings_of(config, data)
    del older["labels"]["subjects"]
    assert differences(older, settings) == []
    assert differences(older, settings_of(few, data)) == ["labels.subjects 0 -> 2"]
    with pytest.raises(UserError, match=r"labels\.subjects is 3: the training split has label maps of 3 subjects"):
        few_label_maps(replace(config, labels=replace(config.labels, subjects=3)), data)
    with pytest.raises(UserError, match=r"they have 32 label maps, and a batch needs 48"):
        few_label_maps(replace(config, labels=replace(config.labels, subjects=1, batch_size=48)), data)


def test_a_streamed_run_holds_some_label_maps_of_each_split_in_memory(
    data: DataSet, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("oasisgen.pipelines.labels.MOST_LABELLED", {"train": 40, "validate": 64})
    config = replace(tiny(data, trained), feed="stream")
    some, again, held_out = (label_maps(config, data, split).load() for split in ("train", "train", "validate"))
    assert (len(some), len(held_out)) == (40, 64)  # all there are of validate
    assert list(keys_of(some)) == list(keys_of(again))
    assert set(some.column("case")) == set(label_maps(tiny(data, trained), data, "train").load().column("case"))
    assert "train: 40 label maps, drawn at random, are used" in capsys.readouterr().out
    codes = store(read_codes(str(trained / "codes"), "train", (64, 64), frozenset(keys_of(some))))
    assert list(keys_of(codes.load())) == list(keys_of(some))


def test_slices_without_a_label_map_are_left_out() -> None:
    maps = [bytes([1] * 6), None, bytes([2] * 6)]
    table = pa.table({"level": pa.array([3, 4, 5], pa.int16()), "labels": pa.array(maps, pa.binary())})
    read = Columns("labels", np.uint8, (2, 3), ("level",)).decode(table)
    assert read["level"].tolist() == [3, 5]
    assert read["labels"][:, 0, 0].tolist() == [1, 2]
