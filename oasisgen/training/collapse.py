"""Whether a prior has collapsed: codes in use and variety of the maps it generates, compared with real maps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from oasisgen.data.feed import Feed, evenly_spaced
from oasisgen.models.codes import CodeMaps
from oasisgen.models.priors import Prior
from oasisgen.models.quantizer import perplexity
from oasisgen.training.worker import Worker

WATCHED = 32  # levels, at most, whose maps are compared


def all_maps(maps: Feed) -> CodeMaps:
    """The code maps of a split, as they are fitted to."""

    def pieces() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for piece in maps.pieces():
            codes, levels = (torch.from_numpy(piece[name].astype(np.int64)) for name in ("codes", "level"))
            yield codes, levels

    return pieces


def usage_of(maps: CodeMaps, codebook_size: int) -> torch.Tensor:
    """How often each code occurs: (K,) int64."""
    return torch.stack([torch.bincount(codes.flatten(), minlength=codebook_size) for codes, _ in maps()]).sum(0)


def labelled(maps: Feed, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code maps (B, h, w) of some rows, their levels (B,) and their numbers (B,), int64 all."""
    return maps.rows(numbers, "codes").astype(np.int64), maps.rows(numbers, "level").astype(np.int64), numbers


def watched_levels(levels: np.ndarray) -> np.ndarray:
    """Those of the training split's levels (N,) whose maps are compared: all, or WATCHED evenly spaced; (L,) int64."""
    there = np.unique(levels)
    return there[evenly_spaced(len(there), WATCHED)].astype(np.int64)


@torch.no_grad()
def generated_maps(prior: Prior, watched: np.ndarray, seed: int, worker: Worker) -> torch.Tensor:
    """Two generated maps of each watched level (L,), from the same noise at every call: (2, L, h, w)."""
    prior.eval()
    levels = torch.from_numpy(watched).repeat(2)  # (2L,)
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(levels), prior.noise_size, generator=random)
    return prior(noise.to(worker.device), levels.to(worker.device)).codes.unflatten(0, (2, len(watched)))


def real_maps(maps: Feed, levels: np.ndarray, watched: np.ndarray) -> torch.Tensor:
    """Of maps of `levels` (N,), the first and the last of each watched level (L,): (2, L, h, w)."""
    ends = [np.flatnonzero(levels == level)[[0, -1]] for level in watched]
    return torch.from_numpy(np.stack([maps.rows(rows, "codes") for rows in ends], 1).astype("int64"))


def map_statistics(pairs: torch.Tensor, codebook_size: int) -> dict[str, Any]:
    """Of pairs of maps (2, N, 64, 64): codes in use, perplexity, and the share of positions where a pair differs."""
    counts = torch.bincount(pairs.flatten(), minlength=codebook_size)
    return {
        "codes_in_use": int((counts > 0).sum()),
        "perplexity": float(perplexity(counts)),
        "variety": float((pairs[0] != pairs[1]).float().mean()),
    }


def collapsed(usage: dict[str, Any], real: dict[str, Any], least: float) -> str:
    """The statistics of generated maps that are below `least` times those of real maps, in words; empty if none is."""
    for name in ("perplexity", "variety"):
        if usage[name] < least * real[name]:
            return f"{name} of generated maps is {usage[name]:.3g}, of real maps {real[name]:.3g}"
    return ""
