from collections.abc import Iterator

import numpy as np
import pytest
import torch

from oasisgen.metrics.detectability import FEWEST, Labelled, auc, detectability, halves, pairs_of_one_level

CPU = torch.device("cpu")
STEPS = 60


def slices(seed: int, count: int = FEWEST) -> Labelled:
    """Blurred noise, of two slices per subject, of two levels."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (count, 33, 33))
    images = (noise[:, :-1, :-1] + noise[:, 1:, :-1] + noise[:, :-1, 1:] + noise[:, 1:, 1:]) // 4
    return Labelled(images.astype(np.uint8), np.arange(count) % 2, np.arange(count) // 2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: another process may be busy on the other core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_slices_of_one_distribution_are_not_told_apart() -> None:
    assert 0.3 < detectability(slices(0), slices(1), CPU, steps=STEPS) < 0.7


def test_a_faint_checkerboard_is_seen() -> None:
    fakes = slices(1)
    board = np.indices((32, 32)).sum(0) % 2 * 20
    damaged = fakes._replace(images=np.clip(fakes.images + board, 0, 255).astype(np.uint8))
    assert detectability(slices(0), damaged, CPU, steps=STEPS) > 0.95


def test_a_set_is_not_told_by_its_levels() -> None:
    """Slices of level 1 are brighter. The real ones hold many of them, the others few."""
    real, others = slices(0), slices(1)
    bright = [np.arange(FEWEST) % 8 < count for count in (6, 2)]
    of_real, of_others = (
        of._replace(images=np.where(is_bright[:, None, None], 128 + of.images // 2, of.images), levels=is_bright * 1)
        for of, is_bright in zip((real, others), bright, strict=True)
    )
    assert 0.25 < detectability(of_real, of_others, CPU, steps=STEPS) < 0.75


def test_only_slices_of_one_level_are_compared() -> None:
    levels = np.array([0, 0, 1]), np.array([0, 1])
    # Level 0: 5 against 4 and 5, a win and a tie; level 1: 1 against 9, a loss.
    assert auc(*levels, np.array([4.0, 5.0, 9.0]), np.array([5.0, 1.0])) == pytest.approx(1.5 / 3)


def test_pairs_are_of_one_level() -> None:
    real, others = np.array([0, 1, 2, 2, 5]), np.array([2, 1, 1, 7, 2, 1])
    rows, of_others = pairs_of_one_level(real, others, 200, np.random.default_rng(0))
    assert (real[rows] == others[of_others]).all()
    assert set(rows) == {1, 2, 3}
    assert set(of_others) == {0, 1, 2, 4, 5}


def test_without_a_common_level_there_is_no_score() -> None:
    others = slices(1)
    assert np.isnan(detectability(slices(0), others._replace(levels=others.levels + 2), CPU, steps=STEPS))


def test_equal_slices_score_equally_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    first = detectability(slices(0), slices(1), CPU, steps=STEPS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert detectability(slices(0), slices(1), CPU, steps=STEPS) == first


def test_of_too_few_slices_there_is_no_score() -> None:
    assert np.isnan(detectability(slices(0), slices(1, FEWEST - 1), CPU, steps=STEPS))
    assert np.isnan(detectability(slices(0, FEWEST - 1), slices(1), CPU, steps=STEPS))


@pytest.mark.parametrize("seed", range(4))
def test_no_subject_is_in_both_halves(seed: int) -> None:
    subjects = np.array(list("aabbccdde"))
    second = halves(subjects, seed)
    assert not set(subjects[second]) & set(subjects[~second])
    assert second.any()
    assert not second.all()
