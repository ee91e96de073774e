"""The VQ-VAE: slice -> code map -> slice (van den Oord et al. 2017, arXiv:1711.00937)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from oasisgen.config.train import VQVAEConfig
from oasisgen.models.quantizer import EMAQuantizer, GradientQuantizer, Quantizer


class Reconstruction(NamedTuple):
    """What the VQ-VAE returns."""

    image: torch.Tensor  # (B, 1, H, W) in [-1, 1]
    codes: torch.Tensor  # (B, H/4, W/4) int64 in [0, K)
    quantizer_loss: torch.Tensor  # ()


def norm_layer(kind: str, channels: int) -> nn.Module:
    """BatchNorm, or nothing."""
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), normalised after each convolution."""

    def __init__(self, channels: int, inner: int, norm: str = "none") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1)
        self.norm1 = norm_layer(norm, inner)
        self.conv2 = nn.Conv2d(inner, channels, 1)
        self.norm2 = norm_layer(norm, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.norm1(self.conv1(F.relu(x)))
        return x + self.norm2(self.conv2(F.relu(h)))


class VQVAE(nn.Module):
    """Encoder, quantizer, decoder. The encoder halves twice: H x W pixels become H/4 x W/4 codes."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        C, D = config.channels, config.code_dim
        block = C, config.residual_channels, config.norm
        half = C if config.norm == "batch" else C // 2  # the baseline has all C channels at H/2 x W/2 too
        self.encoder = nn.Sequential(
            nn.Conv2d(1, half, 4, stride=2, padding=1),  # (B, C', H/2, W/2)
            norm_layer(config.norm, half),
            nn.ReLU(),
            nn.Conv2d(half, C, 4, stride=2, padding=1),  # (B, C, H/4, W/4)
            *(ResidualBlock(*block) for _ in range(config.residual_blocks)),
            nn.Identity() if C == D else nn.Conv2d(C, D, 1),  # (B, D, H/4, W/4)
        )
        self.quantizer = self._quantizer(config)
        self.decoder = nn.Sequential(
            nn.Identity() if C == D else nn.Conv2d(D, C, 3, padding=1),  # (B, C, H/4, W/4)
            *(ResidualBlock(*block) for _ in range(config.residual_blocks)),
            nn.ReLU(),
            nn.ConvTranspose2d(C, half, 4, stride=2, padding=1),  # (B, C', H/2, W/2)
            norm_layer(config.norm, half),
            nn.ReLU(),
            nn.ConvTranspose2d(half, 1, 4, stride=2, padding=1),  # (B, 1, H, W)
            nn.Tanh(),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @staticmethod
    def _quantizer(config: VQVAEConfig) -> Quantizer:
        K, D = config.codebook_size, config.code_dim
        if config.quantizer == "ema":
            return EMAQuantizer(K, D, config.commitment, config.codebook_ema_decay, config.dead_below)
        return GradientQuantizer(K, D, config.commitment)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) in [-1, 1] -> (B, H/4, W/4) int64 in [0, K)."""
        return self.quantizer.encode(self.encoder(x))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, H/4, W/4) int64 -> (B, 1, H, W) in [-1, 1]."""
        return self.decoder(self.quantizer.embed(codes))

    def forward(self, x: torch.Tensor, generator: torch.Generator | None = None, whole: int = 0) -> Reconstruction:
        """(B, 1, H, W) in [-1, 1] -> Reconstruction.

        In training, the quantizer uses `generator` (on x's device) and `whole`, the batch size over all ranks.
        """
        quantized = self.quantizer(self.encoder(x).float(), generator, whole)
        return Reconstruction(self.decoder(quantized.vectors), quantized.codes, quantized.loss)
