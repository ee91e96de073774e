from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oasisgen.data.feed import steps_per_epoch
from oasisgen.data.windows import WINDOW, Step, windowed_steps

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=15)
WORLDS = st.integers(1, 4)
SEEDS = st.integers(0, 2**32 - 1)


def whole(sizes: list[int], batch: int, seed: int = 0, epoch: int = 0) -> list[Step]:
    """An epoch as a single worker sees it."""
    return list(windowed_steps(sizes, batch, seed, epoch, 0, 1))


@given(SIZES, WORLDS, st.integers(1, 8), SEEDS, st.integers(0, 50))
def test_all_ranks_together_see_the_batches_of_one_and_no_row_twice(
    sizes: list[int], world: int, each: int, seed: int, epoch: int
) -> None:
    batch = each * world
    alone = whole(sizes, batch, seed, epoch)
    ranks = [list(windowed_steps(sizes, batch, seed, epoch, rank, world)) for rank in range(world)]
    assert {len(steps) for steps in (alone, *ranks)} == {steps_per_epoch(sum(sizes), batch)}
    for step, together in zip(alone, zip(*ranks, strict=True), strict=True):
        assert {len(part.numbers) for part in together} == {each}
        assert np.array_equal(np.stack([part.numbers for part in together], 1).ravel(), step.numbers)
        assert np.array_equal(np.stack([part.points for part in together], 1).reshape(-1, 2), step.points)
    seen = np.concatenate([step.numbers for step in alone]) if alone else np.array([], int)
    assert len(set(seen.tolist())) == len(seen)
    assert np.isin(seen, np.arange(sum(sizes))).all()


@given(SIZES, st.integers(1, 20), SEEDS, st.integers(0, 40))
def test_an_epoch_goes_on_in_the_middle_as_it_would_have(sizes: list[int], batch: int, seed: int, first: int) -> None:
    rest = list(windowed_steps(sizes, batch, seed, 3, 0, 1, first))
    expected = whole(sizes, batch, seed, 3)[first:]
    assert len(rest) == len(expected)
    for step, other in zip(rest, expected, strict=True):
        assert step.shards == other.shards
        assert np.array_equal(step.numbers, other.numbers)
        assert np.array_equal(step.points, other.points)


@given(st.lists(st.integers(8, 30), min_size=1, max_size=30), st.integers(1, 8), SEEDS)
def test_few_shards_are_held_and_each_is_read_once(sizes: list[int], batch: int, seed: int) -> None:
    homes = np.repeat(np.arange(len(sizes)), sizes)
    steps = whole(sizes, batch, seed)
    for step in steps:
        assert set(homes[step.numbers]) <= set(step.shards)
        assert len(set(step.shards)) == len(step.shards) <= 2 * WINDOW
    reads = list(steps[0].shards) if steps else []
    for before, after in pairwise(steps):
        reads += [shard for shard in after.shards if shard not in before.shards]
    assert len(set(reads)) == len(reads)


def test_the_order_changes_with_seed_and_epoch_and_mixes_shards() -> None:
    sizes = [50] * 12
    homes = np.repeat(np.arange(12), 50)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate([step.numbers for step in whole(sizes, 10, seed, epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    orders = {tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert all(sorted(each) == list(range(600)) for each in orders)
    assert all(len(set(homes[step.numbers])) > 1 for step in whole(sizes, 10))
    first = {tuple(step.shards[:WINDOW]) for epoch in range(5) for step in whole(sizes, 10, epoch=epoch)[:1]}
    assert len(first) == 5  # not the same shards together in each epoch


def test_the_order_is_the_one_of_runs_that_have_begun() -> None:
    steps = list(windowed_steps([3, 2, 4, 3, 3, 5], 4, seed=7, epoch=2, rank=0, world=2, first=2))
    assert [step.numbers.tolist() for step in steps] == [[7, 5], [8, 0], [4, 14]]
    assert [step.shards for step in steps] == [(2, 3, 0, 5, 1, 4), (2, 3, 0, 5, 1, 4), (1, 4)]
    assert steps[0].points[0].tolist() == pytest.approx([0.94109421, 0.33032841])
