from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oasisgen.sampling.png import encode, slice_path
from oasisgen.sampling.sample import GROUP, Sampler, latent, level_of


@pytest.fixture(scope="module")
def sampler(trained: Path) -> Sampler:
    return Sampler(str(trained), base_seed=7, levels=[3, 4, 5])


def test_noise_is_a_pure_function_of_seed_and_id() -> None:
    assert np.array_equal(latent(0, 12, 100), latent(0, 12, 100))
    assert not np.array_equal(latent(0, 12, 100), latent(1, 12, 100))
    many = np.stack([latent(0, number, 100) for number in range(500)])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_levels_take_turns() -> None:
    assert [level_of(number, [3, 9]) for number in range(4)] == [3, 9, 3, 9]


def test_a_slice_does_not_depend_on_how_the_work_is_cut(sampler: Sampler) -> None:
    whole = sampler({"first": np.array([0, GROUP]), "end": np.array([GROUP, 2 * GROUP])})
    cut = sampler({"first": np.array([3, 9, 30]), "end": np.array([4, 16, 32])})
    ids = [3, *range(9, 16), 30, 31]
    assert cut["id"].tolist() == ids
    assert np.array_equal(cut["image"], whole["image"][ids])
    assert cut["level"].tolist() == [level_of(number, [3, 4, 5]) for number in ids]


def test_another_base_seed_makes_other_slices(sampler: Sampler, trained: Path) -> None:
    other = Sampler(str(trained), base_seed=8, levels=[3, 4, 5])
    assert not np.array_equal(sampler.sample(0)["image"], other.sample(0)["image"])


def test_a_png_says_what_it_is(tmp_path: Path) -> None:
    image = np.arange(65536, dtype=np.uint32).reshape(256, 256).astype(np.uint8)
    text = {"Comment": "SYNTHETIC", "id": "12"}
    data = encode(image, text)
    assert data == encode(image, text)
    (tmp_path / "x.png").write_bytes(data)
    read = Image.open(tmp_path / "x.png")
    assert read.text == text  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(read), image)


def test_slices_lie_ten_thousand_to_a_folder() -> None:
    assert slice_path(9_999) == "slices/0/0000009999.png"
    assert slice_path(10_000) == "slices/1/0000010000.png"
