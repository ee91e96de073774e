"""A masked prior over code maps (MaskGIT, Chang et al. 2022, arXiv:2202.04200), conditioned on a low-rank sample.

The components of the PCA prior, weighted by noise, give a low-rank sample of a map; the DCGAN uses the same PCA prior.
How likely each code is around this sample, if errors are Gaussian, is known before any training; a network has learned
what to add to these logits, given the sample and the unmasked codes. It fills in the map, some positions at every
decoding step. Then it may draw the least likely codes again, given all others. (Token-Critic, Lezama
et al. 2022, arXiv:2209.04439, does so too, but finds them with a second network.)
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from oasisgen.config.data import Shape
from oasisgen.config.train import MaskedConfig
from oasisgen.models.codes import CodeMap, CodeMaps, PCAPrior, VectorEmbedding, means_of_levels, some_at_a_time

LEAST_VARIANCE = 0.05  # of codes around a low-rank sample; embedded codes have variance 1


class ZeroInitResidualBlock(nn.Module):
    """x + two 3x3 convolutions of x; the second starts at zero, so the block starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class MaskedCodePredictor(nn.Module):
    """Predicts the codes at masked positions: a U-Net of strided convolutions that halves the sides three times.

    The sides of a code map are multiples of 8. Layers are named after their side for 64 x 64 codes; these are also
    their names in a bundle.
    """

    def __init__(self, channels: int, embedding_dim: int, codebook_size: int, shape: Shape) -> None:
        super().__init__()
        C = channels

        def down(narrow: int, wide: int) -> nn.Module:
            return nn.Conv2d(narrow, wide, 4, stride=2, padding=1)

        def up(wide: int, narrow: int) -> nn.Module:
            return nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)

        self.read = nn.Conv2d(2 * embedding_dim + 1, C, 3, padding=1)
        self.down1, self.at32 = down(C, 2 * C), ZeroInitResidualBlock(2 * C)
        self.down2, self.at16 = down(2 * C, 4 * C), ZeroInitResidualBlock(4 * C)
        self.place = nn.Parameter(0.1 * torch.randn(4 * C, *(side // 4 for side in shape.code_size)))
        self.down3, self.at8 = (
            down(4 * C, 6 * C),
            nn.Sequential(ZeroInitResidualBlock(6 * C), ZeroInitResidualBlock(6 * C)),
        )
        self.level = nn.Embedding(shape.levels, 6 * C)
        self.up3, self.back16 = up(6 * C, 4 * C), ZeroInitResidualBlock(4 * C)
        self.up2, self.back32 = up(4 * C, 2 * C), ZeroInitResidualBlock(2 * C)
        self.up1, self.mix, self.last = up(2 * C, C), nn.Conv2d(2 * C, 2 * C, 1), nn.Conv2d(2 * C, 2 * C, 3, padding=1)
        self.head = nn.Linear(2 * C, codebook_size)

    def forward(
        self,
        image: torch.Tensor,
        masked: torch.Tensor,
        low_rank: torch.Tensor,
        levels: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (B, N, K) of the codes at `positions` (B, N), indices into the flattened map in [0, h*w).

        `image` (B, D, h, w) is an embedded map, `masked` (B, 1, h, w) is True where it is hidden from the network,
        `low_rank` (B, D, h, w) is a low-rank sample, `levels` (B,) int64.
        """
        h64 = F.relu(self.read(torch.cat([image * ~masked, masked.to(image.dtype), low_rank], 1)))  # (B, C, h, w)
        h32 = self.at32(self.down1(h64))  # (B, 2C, h/2, w/2)
        h16 = self.at16(self.down2(F.relu(h32)) + self.place)  # (B, 4C, h/4, w/4)
        h = self.at8(self.down3(F.relu(h16)) + self.level(levels)[:, :, None, None])  # (B, 6C, h/8, w/8)
        h = self.back16(self.up3(F.relu(h)) + h16)  # (B, 4C, h/4, w/4)
        h = self.back32(self.up2(F.relu(h)) + h32)  # (B, 2C, h/2, w/2)
        h = self.mix(torch.cat([F.relu(self.up1(F.relu(h))), h64], 1))  # (B, 2C, h, w)
        h = F.relu(h + self.last(F.relu(h)))  # (B, 2C, h, w)
        return self.head(at_positions(h, positions))  # (B, N, K)


class MaskedPrior(nn.Module):
    """Predictor, code embedding and PCA prior: everything that sampling needs."""

    cholesky: torch.Tensor  # (L, P, P): maps unit noise to coefficients with a level's covariance
    certainty: torch.Tensor  # (L, D, h, w): 1 / variance of embedded codes around their low-rank samples

    def __init__(self, config: MaskedConfig, embedding: VectorEmbedding, shape: Shape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.embedding = embedding
        self.pca_prior = PCAPrior(embedding.channels, config.components, shape)
        self.register_buffer("cholesky", torch.eye(config.components).repeat(shape.levels, 1, 1))
        if config.low_rank_logits:
            self.register_buffer("certainty", torch.ones_like(self.pca_prior.mean))
        self.predictor = MaskedCodePredictor(config.channels, embedding.channels, len(embedding.weight), shape)
        self.conditional = True

    @property
    def noise_size(self) -> int:
        """Standard normal numbers for a map: weights of the components, the order of the positions, and chance, drawn
        once per position, and once more if codes are drawn again."""
        return self.config.components + (3 if self.config.redrawn else 2) * self.shape.codes

    @classmethod
    def from_codebook(cls, config: MaskedConfig, codebook: torch.Tensor, usage: torch.Tensor, shape: Shape) -> Self:
        """An untrained prior over a codebook (K, D) whose codes occur `usage` (K,) times."""
        return cls(config, VectorEmbedding(codebook, usage), shape)

    @torch.no_grad()
    def fit(self, maps: CodeMaps) -> torch.Tensor:
        """Fit the PCA prior and the buffers to the code maps of a split; returns their coefficients (N, P)."""
        self.pca_prior.fit(maps, self.embedding)
        coefficients, levels = self.pca_prior.all_coefficients(maps, self.embedding)  # (N, P), (N,)
        everything = covariance(coefficients)
        for level in range(self.shape.levels):
            its = coefficients[levels == level]
            # Few cases do not determine a level's covariance: it shrinks towards that of all levels, which replaces it
            # below P cases. Else a sample would be a mixture of the level's few training maps, and near to them.
            own = max(0.0, 1 - self.config.components / max(1, len(its)))
            self.cholesky[level] = shrunk_cholesky(its, everything, own)
        if self.config.low_rank_logits:
            self._fit_certainty(maps, coefficients)
        return coefficients

    def _fit_certainty(self, maps: CodeMaps, coefficients: torch.Tensor) -> None:
        """Fit `certainty` to the code maps of a split, given their coefficients (N, P)."""

        def squares() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            left = coefficients
            for codes, levels in maps():
                for some, of in some_at_a_time(codes, levels):
                    its, left = left.tensor_split([len(some)])
                    yield (self.embedding.embed(some) - self.low_rank_sample(its, of)) ** 2, of

        variance, _ = means_of_levels(squares(), tuple(self.certainty.shape))  # (L, D, h, w)
        self.certainty.copy_(1 / variance.clamp(min=LEAST_VARIANCE))

    def coefficients(self, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Standard normal noise (B, P), levels (B,) -> coefficients (B, P) with the covariance of their level."""
        return torch.einsum("bpq,bq->bp", self.cholesky[levels], noise)

    def low_rank_sample(self, coefficients: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Coefficients of the components (B, P), levels (B,) -> a map without detail (B, D, h, w)."""
        return self.pca_prior(torch.zeros((), device=coefficients.device), coefficients, levels)

    @torch.no_grad()
    def forward(self, noise: torch.Tensor, levels: torch.Tensor) -> CodeMap:
        """Standard normal `noise` (B, noise_size), levels (B,) int64 -> CodeMap; a map depends on its own row only."""
        P, N = self.config.components, self.shape.codes
        coefficients = self.coefficients(noise[:, :P], levels)  # (B, P)
        order, chance, *again = torch.special.ndtr(noise[:, P:]).split(N, 1)  # (B, h*w) in [0, 1] each
        low_rank, order = self.low_rank_sample(coefficients, levels), order.argsort(1)
        codes = torch.zeros(len(levels), N, dtype=torch.int64, device=noise.device)  # (B, h*w)
        masked = torch.ones_like(codes, dtype=torch.bool)

        def draw(positions: torch.Tensor, chance: torch.Tensor) -> None:
            """Draw the codes at `positions` (B, N), which are masked, by `chance` (B, h*w)."""
            logits = self.logits(self.predictor, codes, masked, low_rank, levels, positions)  # (B, N, K)
            reached = (logits / self.config.temperature).softmax(2).cumsum(2)  # (B, N, K)
            drawn = torch.searchsorted(reached, chance.gather(1, positions)[:, :, None]).squeeze(2)  # (B, N)
            codes.scatter_(1, positions, drawn.clamp(max=logits.shape[2] - 1))
            masked.scatter_(1, positions, False)

        for first, end in pairwise(decoding_ends(N, self.config.decoding_steps)):
            draw(order[:, first:end], chance)
        for new_chance in again:
            positions = self.unlikely(codes, low_rank, levels)  # (B, N)
            masked.scatter_(1, positions, True)
            draw(positions, new_chance)
        maps = codes.view(-1, *self.shape.code_size)  # (B, h, w)
        return CodeMap(self.embedding.embed(maps), maps)

    def logits(
        self,
        predictor: nn.Module,
        codes: torch.Tensor,
        masked: torch.Tensor,
        low_rank: torch.Tensor,
        levels: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (B, N, K), float32, at `positions` (B, N) of flat maps `codes`, `masked` (B, h*w).

        `predictor` is the prior's own, inside DDP or not; the other arguments are as in its forward pass.
        """
        size = self.shape.code_size
        image = self.embedding.embed(codes.view(-1, *size))  # (B, D, h, w)
        logits: torch.Tensor = predictor(image, masked.view(-1, 1, *size), low_rank, levels, positions).float()
        return logits + self.low_rank_logits(low_rank, levels, positions) if self.config.low_rank_logits else logits

    def low_rank_logits(self, low_rank: torch.Tensor, levels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Log-likelihood (B, N, K) of a low-rank sample (B, D, h, w) given each code at `positions` (B, N), up to a
        constant: that of a Gaussian around the embedded code. Float32 also under autocast.
        """
        sample, certainty = (at_positions(x, positions) for x in (low_rank, self.certainty[levels]))  # (B, N, D) each
        codes = self.embedding.weight  # (K, D)
        with torch.autocast(low_rank.device.type, enabled=False):
            return (certainty * sample) @ codes.t() - 0.5 * certainty @ (codes * codes).t()

    def unlikely(self, codes: torch.Tensor, low_rank: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Positions (B, N) of the codes that the predictor finds least likely in complete flat maps `codes` (B, h*w).

        It sees the code that it judges, too: one pass judges all codes.
        """
        everywhere = torch.arange(self.shape.codes, device=codes.device).expand_as(codes)  # (B, h*w)
        nowhere = torch.zeros_like(codes, dtype=torch.bool)
        logits = self.logits(self.predictor, codes, nowhere, low_rank, levels, everywhere)  # (B, h*w, K)
        # Map by map: that fits into the caches of a CPU.
        surprise = [F.cross_entropy(its, own, reduction="none") for its, own in zip(logits, codes, strict=True)]
        order = torch.stack(surprise).argsort(dim=1, stable=True, descending=True)  # (B, h*w)
        return order[:, : round(self.config.redrawn * self.shape.codes)]


def covariance(coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients (N, P) -> (P, P)."""
    P = coefficients.shape[1]
    return torch.cov(coefficients.t()).view(P, P)


def shrunk_cholesky(coefficients: torch.Tensor, everything: torch.Tensor, own: float) -> torch.Tensor:
    """(P, P), which maps unit noise to coefficients whose covariance is, by the share `own` from 0 to 1, that of a
    level's `coefficients` (N, P), and else that of all levels, `everything` (P, P). One case has none of its own.
    """
    of_level = covariance(coefficients) if len(coefficients) > 1 else everything
    return torch.linalg.cholesky(own * of_level + (1 - own) * everything + 1e-4 * torch.eye(len(everything)))


def at_positions(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What maps (B, C, h, w) hold at `positions` (B, N) of the flattened map: (B, N, C)."""
    return x.flatten(2).transpose(1, 2).gather(1, positions[:, :, None].expand(-1, -1, x.shape[1]))


def decoding_ends(positions: int, steps: int) -> list[int]:
    """How many of the positions are filled in before each of `steps` decoding steps, and after the last one.

    A cosine schedule: few at first.
    """
    return [positions - round(positions * math.cos(0.5 * math.pi * step / steps)) for step in range(steps + 1)]
