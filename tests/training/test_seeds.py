from itertools import product

import torch

from oasisgen.training.stage import step_seed


def test_every_step_of_every_run_and_rank_has_a_seed_of_its_own() -> None:
    seeds = [0, 1, 2, 4096, 2**31, 2**32 - 1]  # by (seed << 20) + step, those of 0 and 4096 were equal on a CPU
    runs = list(product(seeds, range(1000), range(4)))
    found = {step_seed(*run) for run in runs}
    assert len(found) == len(runs)
    assert len({seed % 2**32 for seed in found}) > 0.9999 * len(runs)  # all that a CPU's generator uses


def test_the_first_step_of_a_run_does_not_draw_as_the_second_of_another() -> None:
    drawn = [
        torch.rand(4, generator=torch.Generator().manual_seed(step_seed(seed, step, rank))).tolist()
        for seed, step, rank in ((0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0), (4096, 0, 0))
    ]
    assert len({tuple(each) for each in drawn}) == 5


def test_a_step_draws_the_same_when_it_is_repeated() -> None:
    assert step_seed(3, 14, 1) == step_seed(3, 14, 1)
