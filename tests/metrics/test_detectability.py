from collections.abc import Iterator

import numpy as np
import pytest
import torch

from oasisgen.metrics import detectability as measure
from oasisgen.metrics.detectability import FEWEST, Labelled, detectability, halves

CPU = torch.device("cpu")


def slices(seed: int, count: int = FEWEST) -> Labelled:
    """Blurred noise, of two slices per subject."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (count, 33, 33))
    images = (noise[:, :-1, :-1] + noise[:, 1:, :-1] + noise[:, :-1, 1:] + noise[:, 1:, 1:]) // 4
    return Labelled(images.astype(np.uint8), np.arange(count) // 2)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little training, in one thread: another process may be busy on the other core."""
    monkeypatch.setattr(measure, "STEPS", 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_slices_of_one_distribution_are_not_told_apart() -> None:
    assert 0.3 < detectability(slices(0), slices(1), CPU) < 0.7


def test_a_faint_checkerboard_is_seen() -> None:
    fakes = slices(1)
    board = np.indices((32, 32)).sum(0) % 2 * 20
    damaged = fakes._replace(images=np.clip(fakes.images + board, 0, 255).astype(np.uint8))
    assert detectability(slices(0), damaged, CPU) > 0.95


def test_equal_slices_score_equally_and_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    first = detectability(slices(0), slices(1), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert detectability(slices(0), slices(1), CPU) == first


def test_of_too_few_slices_there_is_no_score() -> None:
    assert np.isnan(detectability(slices(0), slices(1, FEWEST - 1), CPU))
    assert np.isnan(detectability(slices(0, FEWEST - 1), slices(1), CPU))


@pytest.mark.parametrize("seed", range(4))
def test_no_subject_is_in_both_halves(seed: int) -> None:
    subjects = np.array(list("aabbccdde"))
    second = halves(subjects, seed)
    assert not set(subjects[second]) & set(subjects[~second])
    assert second.any()
    assert not second.all()
