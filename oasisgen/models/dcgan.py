"""The DCGAN over code maps (Radford et al. 2016, arXiv:1511.06434)."""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from oasisgen.config.data import Shape
from oasisgen.config.train import DCGANConfig
from oasisgen.models.codes import CodeEmbedding, CodeMap, PCAPrior, make_embedding

LEAST_START = 4  # codes: no side of the smallest map in the two networks is shorter


def halvings(shape: Shape) -> int:
    """How often both sides of a code map can be halved, neither to less than LEAST_START: 4 times for 64 x 64 codes."""
    sides, count = shape.code_size, 0
    while all(side % 2 == 0 and side // 2 >= LEAST_START for side in sides):
        sides, count = (sides[0] // 2, sides[1] // 2), count + 1
    return count


def ladder_start(shape: Shape) -> tuple[int, int]:
    """Height and width of the smallest map in the two networks: 4 x 4 for 64 x 64 codes, 6 x 5 for 48 x 40."""
    height, width = (side >> halvings(shape) for side in shape.code_size)
    return height, width


class Generator(nn.Module):
    """z (and a level) -> an embedded map, by a stack of strided transposed convolutions."""

    def __init__(self, config: DCGANConfig, channels: int, shape: Shape) -> None:
        super().__init__()
        C = config.channels
        self.level = nn.Embedding(shape.levels, config.latent_dim) if config.conditional else None
        inputs = config.latent_dim * (2 if config.conditional else 1)
        widths = [C << rung for rung in reversed(range(halvings(shape)))]  # 8C, 4C, 2C, C for 64 x 64 codes
        # (B, 8C, 4, 4) for 64 x 64 codes
        ladder: list[nn.Module] = [nn.ConvTranspose2d(inputs, widths[0], ladder_start(shape))]
        for wide, narrow in zip(widths, [*widths[1:], channels], strict=True):
            ladder += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
        self.ladder = nn.Sequential(*ladder)

    def forward(self, z: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """(B, Z), (B,) int64 -> (B, channels, h, w), unbounded."""
        if self.level is not None:
            z = torch.cat([z, self.level(levels)], 1)  # (B, 2Z)
        return self.ladder(z[:, :, None, None]).float()  # (B, channels, h, w)


class Discriminator(nn.Module):
    """An embedded code map (and its level) -> one logit, by strided convolutions."""

    def __init__(self, config: DCGANConfig, channels: int, shape: Shape) -> None:
        super().__init__()
        C = config.channels

        def bound(module: nn.Module) -> nn.Module:
            return spectral_norm(module) if config.spectral_norm else module

        layers: list[nn.Module] = []
        narrow = channels
        for number, wide in enumerate(C << rung for rung in range(halvings(shape))):
            layers.append(bound(nn.Conv2d(narrow, wide, 4, stride=2, padding=1)))
            if number > 0 and not config.spectral_norm:
                layers.append(nn.BatchNorm2d(wide))
            layers.append(nn.LeakyReLU(0.2))
            narrow = wide
        self.features = nn.Sequential(*layers)  # (B, 8C, 4, 4) of 64 x 64 codes
        size = narrow * math.prod(ladder_start(shape))
        self.logit = bound(nn.Linear(size, 1))
        self.level = bound(nn.Embedding(shape.levels, size)) if config.conditional else None

    def forward(self, image: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """(B, channels, h, w), (B,) int64 -> (B,) logits; above 0 means real."""
        h = self.features(image).flatten(1)  # (B, size)
        logit = self.logit(h).squeeze(1)  # (B,)
        if self.level is not None:  # projection (Miyato & Koyama 2018, arXiv:1802.05637)
            logit = logit + (self.level(levels) * h).sum(1)
        return logit.float()


class DCGAN(nn.Module):
    """Generator, code embedding and PCA prior: everything that sampling needs."""

    def __init__(self, config: DCGANConfig, embedding: CodeEmbedding, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding
        self.pca_prior = PCAPrior(embedding.channels, config.components, shape) if config.pca_prior else None
        self.generator = Generator(config, embedding.channels, shape)
        self.noise_size = config.latent_dim
        self.conditional = config.conditional

    @classmethod
    def from_codebook(cls, config: DCGANConfig, codebook: torch.Tensor, usage: torch.Tensor, shape: Shape) -> Self:
        """An untrained DCGAN over a codebook (K, D) whose codes occur `usage` (K,) times."""
        return cls(config, make_embedding(config, codebook, usage), shape)

    def apply_pca_prior(self, raw: torch.Tensor, z: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """A generator's raw output (B, C, h, w) for z (B, Z), levels (B,) -> an embedded map, unquantized."""
        return raw if self.pca_prior is None else self.pca_prior(raw, z, levels)

    def forward(self, z: torch.Tensor, levels: torch.Tensor) -> CodeMap:
        """(B, Z), (B,) int64 -> CodeMap."""
        return self.embedding.quantize(self.apply_pca_prior(self.generator(z, levels), z, levels))


def shift_each(images: torch.Tensor, most: int, generator: torch.Generator | None) -> torch.Tensor:
    """Shift each map (B, C, H, W) by its own random offset of up to `most` codes along each axis, edges repeated."""
    if most == 0:
        return images
    B, C, H, W = images.shape
    padded = F.pad(images, (most,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * most + 1, (B, 2), generator=generator, device=images.device)
    rows = offsets[:, :1] + torch.arange(H, device=images.device)  # (B, H)
    columns = offsets[:, 1:] + torch.arange(W, device=images.device)  # (B, W)
    moved = padded.gather(2, rows[:, None, :, None].expand(B, C, H, W + 2 * most))  # (B, C, H, W + 2 * most)
    return moved.gather(3, columns[:, None, None, :].expand(B, C, H, W))  # (B, C, H, W)


def discriminator_input(images: torch.Tensor, config: DCGANConfig, generator: torch.Generator | None) -> torch.Tensor:
    """Embedded maps (B, C, H, W), real or generated, augmented for the discriminator: shifted, with noise added.

    The background of a real map is a single code. Without noise, this alone would tell the discriminator which maps are
    real, and the generator would learn nothing about anatomy.
    """
    shifted = shift_each(images, config.shift, generator)
    if config.noise == 0:
        return shifted
    return shifted + config.noise * torch.randn(shifted.shape, generator=generator, device=shifted.device)
