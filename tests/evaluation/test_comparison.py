import numpy as np
import pytest
import torch

from oasisgen.data.feed import Feed
from oasisgen.data.phantom import subject
from oasisgen.evaluation.comparison import HELD_OUT, References, rows_of_levels
from oasisgen.evaluation.ssim import ssim

LEVELS = [0, 10, 20, 30]


def feed(numbers: range) -> Feed:
    """Four levels of some virtual subjects, a block each."""
    return Feed(
        [
            {
                "case": np.array([f"{n:03d}"] * 4, object),
                "level": np.array(LEVELS),
                "image": subject(0, n)[LEVELS],
            }
            for n in numbers
        ]
    )


@pytest.fixture(scope="module")
def references() -> References:
    return References(feed(range(1, 13)), feed(range(20, 40)))


def test_a_copy_of_a_training_slice_is_found_out(references: References) -> None:
    image = references.train.slices.rows(np.array([4 * 6 + 2]), "image")[0]  # case 007, level 20
    found = references.compare(image, 20, [0])
    assert (found.nearest_case, found.nearest_level) == ("007", 20)
    assert found.ssim_train_max == pytest.approx(1.0)
    assert found.copy_ratio == pytest.approx(0, abs=1e-4)


def test_a_model_without_levels_gets_that_of_the_nearest(references: References) -> None:
    image = references.train.slices.rows(np.array([4 * 6 + 2]), "image")[0]
    assert references.compare(image, -1, [0]).level == 20


def test_both_measures_are_their_definitions(references: References) -> None:
    image = subject(0, 50)[10]
    found = references.compare(image, 10, [7, 3])
    pixels = torch.from_numpy(image)
    real = [block["image"][1] for block in references.held_out.slices.blocks]
    drawn = np.random.default_rng([7, 3]).permutation(np.arange(1, 80, 4))[:HELD_OUT] // 4
    expected = np.mean([float(ssim(pixels[None], torch.from_numpy(real[i])[None])) for i in drawn])
    assert found.ssim_real == pytest.approx(expected, abs=1e-6)
    train = [float(ssim(pixels[None], torch.from_numpy(b["image"][1])[None])) for b in references.train.slices.blocks]
    assert found.ssim_train_max == pytest.approx(max(train), abs=1e-6)
    assert int(found.nearest_case) == int(np.argmax(train)) + 1
    others = [
        float(ssim(pixels[None], torch.from_numpy(b["image"][1])[None])) for b in references.held_out.slices.blocks
    ]
    assert found.copy_ratio == pytest.approx((1 - max(train)) / (1 - max(others)), abs=1e-5)
    assert references.compare(image, 10, [7, 3]) == found
    assert references.compare(image, 10, [7, 4]).ssim_real != found.ssim_real


def test_a_held_out_slice_is_not_compared_with_its_own_case(references: References) -> None:
    block = references.held_out.slices.blocks[0]
    alone = References(references.train.slices, Feed([block, references.held_out.slices.blocks[1]]))
    found = alone.compare(block["image"][0], 0, [0], case="020")
    assert found.ssim_real < 0.99


def test_rows_are_of_the_levels_wanted_as_far_as_there_are_so_many() -> None:
    levels = np.tile(np.arange(32), 5)
    wanted = np.array([3, 30, 3, 7])
    assert sorted(levels[rows_of_levels(levels, wanted)]) == [3, 3, 7, 30]
    assert np.bincount(levels[rows_of_levels(levels, np.repeat([1, 2], 100))]).tolist() == [0, 5, 5]
