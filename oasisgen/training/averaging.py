"""Averaged weights: smoother than the last ones, and what is scored, kept and sampled with."""

import torch


@torch.no_grad()
def average(averaged: torch.nn.Module, current: torch.nn.Module, decay: float, step: int) -> None:
    """Move the averaged network towards the current one after step `step`, counted from 0.

    `decay` is per step; at first it is lower, so that the untrained weights are soon forgotten. Statistics, such as
    BatchNorm's and the codebook's, are moving averages already: they are copied.
    """
    decay = min(decay, (step + 1) / (11.0 + step))
    for mean, value in zip(averaged.parameters(), current.parameters(), strict=True):
        mean.lerp_(value, 1.0 - decay)
    for statistic, latest in zip(averaged.buffers(), current.buffers(), strict=True):
        statistic.copy_(latest)
