"""Averaged weights. They are smoother than the latest ones, and they are what is scored, saved and sampled from.

One rule for all stages: parameters are averaged, buffers are copied from the network in training. Buffers are the
codebook's moving averages and BatchNorm's statistics, which are already averages over many steps (about ten, with
BatchNorm's momentum of 0.1). BatchNorm's statistics belong to the latest weights, not to the averaged ones. The
difference is small: the averaged network reconstructs at least as well as the latest
(tests/training/test_averaging.py).
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
