import threading
from collections.abc import Iterator

import numpy as np
import pytest

from oasisgen.data.feed import Feed, epoch_batches, evenly_spaced, read_ahead, steps_per_epoch


def test_an_epoch_is_the_same_for_any_number_of_workers() -> None:
    alone = list(epoch_batches(50, 8, seed=1, epoch=3, rank=0, world=1))
    ranks = [list(epoch_batches(50, 8, seed=1, epoch=3, rank=rank, world=4)) for rank in range(4)]
    assert len(alone) == steps_per_epoch(50, 8) == 6
    for step, (numbers, points) in enumerate(alone):
        together = [batches[step] for batches in ranks]
        assert sorted(np.concatenate([n for n, _ in together])) == sorted(numbers)
        crops = {int(n): tuple(p) for mine, spots in together for n, p in zip(mine, spots, strict=True)}
        assert crops == {int(n): tuple(p) for n, p in zip(numbers, points, strict=True)}


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [int(n) for numbers, _ in epoch_batches(50, 5, seed, epoch, 0, 1) for n in numbers]

    assert sorted(order(0, 0)) == list(range(50))
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_rows_and_crops_come_from_the_right_block() -> None:
    random = np.random.default_rng(0)
    whole = random.integers(0, 256, (10, 16, 16), np.uint8)
    feed = Feed([{"image": whole[:3]}, {"image": whole[:0]}, {"image": whole[3:4]}, {"image": whole[4:]}])
    numbers = np.array([9, 0, 3, 2, 4])
    assert len(feed) == 10
    assert np.array_equal(feed.rows(numbers, "image"), whole[numbers])
    assert feed.rows(numbers[:0], "image").shape == (0, 16, 16)
    assert feed.rows(numbers[:0], "image").dtype == np.uint8
    corners = np.array([[0, 0], [12, 12], [3, 5], [1, 2], [8, 0]])
    crops = feed.crops(numbers, corners, (4, 4))
    for crop, number, (y, x) in zip(crops, numbers, corners, strict=True):
        assert np.array_equal(crop, whole[number, y : y + 4, x : x + 4])


@pytest.mark.parametrize(("count", "expected"), [(3, [0, 4, 9]), (0, list(range(10))), (99, list(range(10)))])
def test_evenly_spaced_rows(count: int, expected: list[int]) -> None:
    assert evenly_spaced(10, count).tolist() == expected


def test_reading_ahead_gets_one_item_ready_while_another_is_worked_on() -> None:
    made, asked = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 2:
                asked.set()
            yield number

    ahead = read_ahead(items())
    assert [next(ahead), next(ahead)] == [0, 1]
    assert asked.wait(20)  # nobody has asked for it yet
    assert 3 not in made
    assert list(ahead) == [2, 3]


def test_what_goes_wrong_ahead_is_raised_where_it_is_due() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise OSError("lost")

    ahead = read_ahead(items())
    assert next(ahead) == 0
    with pytest.raises(OSError, match="lost"):
        next(ahead)
