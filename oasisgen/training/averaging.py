"""Averaged weights: smoother than the last ones; they are scored, kept and sampled with.

One rule for all stages: parameters are averaged, buffers are copied from the network in training. Buffers are the
codebook's moving averages and BatchNorm's statistics, which are averages over many steps already: with momentum 0.1,
over about ten. BatchNorm's are those of the latest weights, which the averaged ones trail; so small is the difference
that the averaged network still reconstructs at least as well as the latest (tests/training/test_averaging.py).
"""

import torch


@torch.no_grad()
def average(averaged: torch.nn.Module, current: torch.nn.Module, decay: float, step: int) -> None:
    """Move the averaged network towards the current one after step `step`, counted from 0.

    `decay` is per step; at first it is lower, so that the untrained weights are soon forgotten. Buffers are
    copied.
    """
    decay = min(decay, (step + 1) / (11.0 + step))
    for mean, value in zip(averaged.parameters(), current.parameters(), strict=True):
        mean.lerp_(value, 1.0 - decay)
    for statistic, latest in zip(averaged.buffers(), current.buffers(), strict=True):
        statistic.copy_(latest)
