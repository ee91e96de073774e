"""Code maps as networks see them: the embedding of codes, and the PCA prior over embedded maps."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from oasisgen.config.data import Shape
from oasisgen.config.train import DCGANConfig
from oasisgen.models.quantizer import nearest, straight_through

# Every code map of a split (M, h, w) with its level (M,), int64 both, some maps at a time; may be called again.
CodeMaps = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]

MOST_ANALYSED = 10_000 * 64**2  # codes, at most, that principal components are computed from; 16 bytes each
SMALL_SPREAD = 0.05  # deviations are divided by the spread, but by no less than this; embedded codes have variance 1
RESIDUAL = 0.5  # how far the untrained generator moves a map, in units of the spread


class CodeMap(NamedTuple):
    """A generated code map."""

    image: torch.Tensor  # (B, C, h, w): its embedded codes, as the discriminator sees them
    codes: torch.Tensor  # (B, h, w) int64 in [0, K): every output is a valid code map


class VectorEmbedding(nn.Module):
    """Embeds a code as its codebook vector, each dimension standardised; quantizes a vector to the nearest code."""

    weight: torch.Tensor  # (K, D)

    def __init__(self, codebook: torch.Tensor, usage: torch.Tensor) -> None:
        """`codebook` (K, D); `usage` (K,): how often each code occurs, which weights it in mean and spread."""
        super().__init__()
        share = (usage.double() / usage.sum()).unsqueeze(1)  # (K, 1)
        mean = (share * codebook.double()).sum(0)  # (D,)
        deviation = (share * (codebook.double() - mean) ** 2).sum(0).sqrt().clamp(min=1e-6)
        self.register_buffer("weight", ((codebook.double() - mean) / deviation).float())
        self.channels = codebook.shape[1]

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, h, w) int64 -> (B, D, h, w)."""
        return F.embedding(codes, self.weight).permute(0, 3, 1, 2)  # (B, D, h, w)

    def quantize(self, raw: torch.Tensor) -> CodeMap:
        """(B, D, h, w) -> the nearest codes, straight-through."""
        B, D, H, W = raw.shape
        codes = nearest(raw.detach().permute(0, 2, 3, 1).reshape(-1, D), self.weight).view(B, H, W)
        return CodeMap(straight_through(raw, self.embed(codes)), codes)


class IndexEmbedding(nn.Module):
    """The baseline's embedding: the index of a code, scaled to [-1, 1] like a grey value."""

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.channels, self.last = 1, codebook_size - 1

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, h, w) int64 -> (B, 1, h, w) in [-1, 1]."""
        return codes.unsqueeze(1).float() * (2.0 / self.last) - 1.0  # (B, 1, h, w)

    def quantize(self, raw: torch.Tensor) -> CodeMap:
        """(B, 1, h, w) -> tanh, as the baseline's discriminator sees it, and the nearest indices."""
        image = torch.tanh(raw)
        codes = ((image.detach() + 1.0) * (self.last / 2.0)).round().long().squeeze(1)  # (B, h, w)
        return CodeMap(image, codes)


CodeEmbedding = VectorEmbedding | IndexEmbedding


def some_at_a_time(codes: torch.Tensor, levels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Code maps (N, h, w) and their levels (N,), 256 at a time: embedded, all at once might not fit into memory."""
    return zip(codes.split(256), levels.split(256), strict=True)


def means_of_levels(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], size: tuple[int, ...]
) -> tuple[torch.Tensor, int]:
    """Means of each level, of `size` (L, C, h, w), and the number of values: of values (B, C, h, w) and their levels
    (B,), in batches. A level without values gets the mean over all levels.
    """
    total, count = torch.zeros(size), torch.zeros(size[0], dtype=torch.int64)
    for values, levels in batches:
        total.index_add_(0, levels, values)
        count += torch.bincount(levels, minlength=len(count))
    N, count = int(count.sum()), count.view(-1, 1, 1, 1)
    return torch.where(count == 0, total.sum(0) / N, total / count.clamp(min=1)), N


class PCAPrior(nn.Module):
    """Mean and standard deviation of the embedded training maps of each level, and their principal components.

    Components weighted by noise are a linear model of anatomy (as in Cootes et al. 1995, Computer Vision and
    Image Understanding 61:38-59): blurred, but varied in shape. The generator adds what a linear model cannot express.
    Where the maps of a level never differ, as in the black corners, generated maps cannot differ either.
    """

    mean: torch.Tensor  # (L, C, h, w)
    spread: torch.Tensor  # (L, C, h, w): standard deviation
    components: torch.Tensor  # (P, C, h, w): of the maps' deviations in units of their spread

    def __init__(self, channels: int, components: int, shape: Shape) -> None:
        super().__init__()
        size = channels, *shape.code_size
        self.register_buffer("mean", torch.zeros(shape.levels, *size))
        self.register_buffer("spread", torch.ones(shape.levels, *size))
        self.register_buffer("components", torch.zeros(components, *size))

    @torch.no_grad()
    def fit(self, maps: CodeMaps, embedding: CodeEmbedding) -> None:
        """Compute the buffers from the code maps of a split.

        A level without maps gets the mean and spread over the maps of all levels.
        """

        def moments() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for codes, levels in maps():
                for some, of in some_at_a_time(codes, levels):
                    image = embedding.embed(some)  # (256, C, h, w)
                    yield torch.cat([image, image * image], 1), of

        L, C, h, w = self.mean.shape
        means, N = means_of_levels(moments(), (L, 2 * C, h, w))
        mean, square = means.chunk(2, 1)  # (L, C, h, w) each
        self.mean.copy_(mean)
        self.spread.copy_((square - mean**2).clamp(min=0).sqrt())

        rank = min(len(self.components), N)
        if rank == 0:
            return
        every = math.ceil(N * self.mean[0, 0].numel() / MOST_ANALYSED)  # the components are those of every so many maps
        deviations = torch.empty(math.ceil(N / every), self.mean[0].numel())  # (A, C*h*w)
        seen = filled = 0
        for codes, levels in maps():
            chosen = slice(-seen % every, None, every)
            for deviation in self._deviations(codes[chosen], levels[chosen], embedding):
                deviations[filled : filled + len(deviation)] = deviation.flatten(1)
                filled += len(deviation)
            seen += len(codes)
        _, strength, directions = torch.svd_lowrank(deviations, q=rank, niter=2)  # (P,), (C*h*w, P)
        weighed = (
            directions * strength / len(deviations) ** 0.5
        ).t()  # (P, C*h*w): unit noise gives the data's variance
        self.components[:rank] = weighed.reshape(rank, *self.components.shape[1:])

    @torch.no_grad()
    def coefficients(self, codes: torch.Tensor, levels: torch.Tensor, embedding: CodeEmbedding) -> torch.Tensor:
        """Coefficients (N, P) of the components in code maps (N, h, w) of levels (N,); 0 for an unused component."""
        components = self.components.flatten(1)  # (P, C*h*w)
        squares = components.pow(2).sum(1).clamp(min=1e-6)  # (P,)
        return torch.cat([d.flatten(1) @ components.t() / squares for d in self._deviations(codes, levels, embedding)])

    def all_coefficients(self, maps: CodeMaps, embedding: CodeEmbedding) -> tuple[torch.Tensor, torch.Tensor]:
        """The coefficients (N, P) of the code maps of a split, and their levels (N,)."""
        found = [(self.coefficients(codes, levels, embedding), levels) for codes, levels in maps()]
        coefficients, levels = map(torch.cat, zip(*found, strict=True))
        return coefficients, levels

    def _deviations(
        self, codes: torch.Tensor, levels: torch.Tensor, embedding: CodeEmbedding
    ) -> Iterator[torch.Tensor]:
        """Deviations of maps from their level's mean, in units of the spread, (256, C, h, w) at a time."""
        for maps, of in some_at_a_time(codes, levels):
            yield (embedding.embed(maps) - self.mean[of]) / self.spread[of].clamp(min=SMALL_SPREAD)

    def forward(self, raw: torch.Tensor, z: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Raw output (B, C, h, w), the noise it was made from (B, Z), levels (B,) int64 -> (B, C, h, w)."""
        linear = torch.einsum("bp,pchw->bchw", z[:, : len(self.components)], self.components)  # (B, C, h, w)
        return self.mean[levels] + self.spread[levels] * (linear + RESIDUAL * raw)


def make_embedding(config: DCGANConfig, codebook: torch.Tensor, usage: torch.Tensor) -> CodeEmbedding:
    """The embedding that `config` names, over a codebook (K, D) with usage counts (K,)."""
    return VectorEmbedding(codebook, usage) if config.embedding == "vector" else IndexEmbedding(len(codebook))
