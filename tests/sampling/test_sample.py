import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.settings_sheet import LABELS, sample_with, settings_of, sheet
from oasisgen.config.data import OASIS
from oasisgen.config.train import MaskedConfig
from oasisgen.data.labels import palette
from oasisgen.models.masked import MaskedPrior
from oasisgen.sampling.ids import groups
from oasisgen.sampling.png import PngEncoder, decode_png, encode_labels, encode_png
from oasisgen.sampling.sample import Sampler, latent


@pytest.fixture(scope="module")
def sampler(trained: Path) -> Sampler:
    return Sampler(str(trained), base_seed=7)


def test_noise_is_a_pure_function_of_seed_and_id() -> None:
    assert np.array_equal(latent(0, 12, 100), latent(0, 12, 100))
    assert not np.array_equal(latent(0, 12, 100), latent(1, 12, 100))
    many = np.stack([latent(0, number, 100) for number in range(500)])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_a_slice_does_not_depend_on_how_the_work_is_cut(sampler: Sampler) -> None:
    def made(ids: list[int]) -> dict[str, np.ndarray]:
        table = groups(np.array(ids))
        return sampler({"group": table, "part": np.zeros(len(table), int)})

    whole, some = made(list(range(40))), made([3, 9, 14, 25, 30, 35])
    assert sorted(some["id"]) == [3, 9, 14, 25, 30, 35]
    assert some["level"].tolist() == (some["id"] % 32).tolist()
    where = {number: row for row, number in enumerate(whole["id"].tolist())}
    for number, image in zip(some["id"].tolist(), some["image"], strict=True):
        assert np.array_equal(image, whole["image"][where[number]])


def test_another_base_seed_makes_other_slices(sampler: Sampler, trained: Path) -> None:
    other = Sampler(str(trained), base_seed=8)
    (group,) = groups(np.arange(16))
    assert not np.array_equal(sampler.sample(group)["image"], other.sample(group)["image"])


def test_bfloat16_changes_a_slice_a_little_and_is_named(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (group,) = groups(np.arange(16))
    made: dict[tuple[bool, str], Any] = {}
    for has in (True, False):  # whatever this CPU has: it only takes longer
        for module in ("oasisgen.precision", "oasisgen.sampling.sample"):
            monkeypatch.setattr(f"{module}.has_bfloat16", lambda _, has=has: has)
        made |= {(has, kind): Sampler(str(trained), 7, kind).sample(group) for kind in ("bfloat16", "float32")}
    exact, cpu = made[True, "float32"], f"cpu {torch.backends.cpu.get_cpu_capability()}"
    for key, slices in made.items():
        assert set(slices["device"]) == {f"{cpu}, bfloat16" if key == (True, "bfloat16") else cpu}
        assert np.array_equal(slices["image"], exact["image"]) == (key != (True, "bfloat16"))
    difference = np.abs(made[True, "bfloat16"]["image"].astype(int) - exact["image"])
    assert difference.mean() < 1.0  # of 255


def test_a_sheet_shows_the_same_ids_with_one_setting_changed_in_each_row(trained: Path) -> None:
    torch.manual_seed(0)
    sampler = Sampler(str(trained), base_seed=7)
    config = MaskedConfig(components=4, channels=8, decoding_steps=2)
    codebook = sampler.vqvae.quantizer.codebook
    sampler.prior = MaskedPrior.from_codebook(config, codebook, torch.ones(len(codebook)), OASIS).eval()
    rows = settings_of(config, bfloat16=True, temperatures=[0.01], decoding_steps=[1], redrawn=[0.0])
    changed = {"temperature": 0.01}, {"decoding_steps": 1}, {"redrawn": 0.0}
    assert [row.changed for row in rows] == [{}, *changed, {}]
    assert [row.precision for row in rows] == ["bfloat16"] * 4 + ["float32"]
    ids = [20, 3]
    made = [(row.label, sample_with(sampler, row, ids)) for row in rows]
    assert sampler.prior.config == config
    (group,) = groups(np.array([3, 20]))
    usual = dict(zip(*(sampler.sample(group)[name] for name in ("id", "image")), strict=True))
    assert np.array_equal(made[0][1], [usual[20], usual[3]])
    assert not any(np.array_equal(images, made[0][1]) for _, images in made[1:4])
    picture = sheet(made, scale=0.5)
    assert picture.size == (LABELS + (2 * 260 + 4) // 2, (5 * 260 + 4) // 2)
    cell = np.asarray(picture)[2 + 130 : 130 + 130, LABELS + 2 : LABELS + 130]
    assert abs(cell.mean() - made[1][1][0].mean()) < 2


def test_a_prior_without_such_settings_has_one_row() -> None:
    assert [row.changed for row in settings_of(None, bfloat16=False, temperatures=[1], decoding_steps=[4])] == [{}]


def test_a_png_says_what_it_is(tmp_path: Path) -> None:
    image = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint8)
    text = {"Comment": "SYNTHETIC", "id": "12"}
    data = encode_png(image, text)
    assert data == encode_png(image, text)
    (tmp_path / "x.png").write_bytes(data)
    read = Image.open(tmp_path / "x.png")
    assert read.text == text  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(read), image)


def test_an_encoder_puts_png_and_digest_in_the_place_of_the_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256), np.uint8)
    rows = PngEncoder("abc", 5)({"id": np.array([4, 9]), "level": np.array([4, 9]), "image": images})
    assert sorted(rows) == ["id", "level", "png", "sha256"]
    for row, image in enumerate(images):
        assert np.array_equal(decode_png(rows["png"][row], (256, 256)), image)
        assert hashlib.sha256(rows["png"][row]).hexdigest() == rows["sha256"][row]
    assert Image.open(io.BytesIO(rows["png"][1])).text["id"] == "9"  # type: ignore[attr-defined]


@pytest.mark.parametrize("classes", [2, 4, 20, 256])
def test_a_label_map_is_a_palette_png_whose_pixels_are_the_classes(classes: int, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, classes, (64, 96), np.uint8)
    data = encode_labels(labels, classes, {"id": "12"})
    assert data == encode_labels(labels, classes, {"id": "12"})
    read = Image.open(io.BytesIO(data))
    assert (read.mode, read.text) == ("P", {"id": "12"})  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(read), labels)
    assert np.array_equal(decode_png(data, (64, 96), "P"), labels)
    colors = np.asarray(read.convert("RGB"))
    assert np.array_equal(colors, palette(classes)[labels])
    assert not colors[labels == 0].any()
    with pytest.raises(ValueError, match="pixels of mode P"):
        decode_png(data, (64, 96))


def test_an_encoder_names_the_classes_of_label_maps() -> None:
    arrays = np.random.default_rng(0).integers(0, 2, (2, 1, 64, 64), np.uint8)
    batch = {"id": np.array([4]), "level": np.array([4]), "image": arrays[0], "labels": arrays[1]}
    rows = PngEncoder("abc", 5, ("background", "CSF"))(batch)
    assert sorted(rows) == ["id", "labels_png", "labels_sha256", "level", "png", "sha256"]
    assert Image.open(io.BytesIO(rows["labels_png"][0])).text["label_classes"] == "0 background, 1 CSF"  # type: ignore[attr-defined]
    assert "label_classes" not in Image.open(io.BytesIO(rows["png"][0])).text  # type: ignore[attr-defined]


def test_a_label_map_is_of_its_slice_whatever_ids_share_the_group_and_changes_no_image(
    sampler: Sampler, trained: Path
) -> None:
    both = Sampler(str(trained), base_seed=7, labels=True)
    whole, some = (both.sample(groups(np.array(ids))[0]) for ids in (list(range(16)), [3, 9]))
    assert whole["labels"].shape == whole["image"].shape
    assert whole["labels"].max() < 4
    for row, number in enumerate(some["id"]):
        assert np.array_equal(some["labels"][row], whole["labels"][number])
    plain = sampler.sample(groups(np.arange(16))[0])
    assert "labels" not in plain
    assert np.array_equal(plain["image"], whole["image"])
