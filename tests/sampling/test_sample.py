import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oasisgen.sampling.ids import groups
from oasisgen.sampling.png import PngEncoder, decode_png, encode_png
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
