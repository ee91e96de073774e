"""The label decoder: the code vectors of a code map -> the class of each pixel, such as its tissue."""

import torch
from torch import nn

from oasisgen.config.train import LabelsConfig
from oasisgen.models.vqvae import ResidualBlock


class LabelDecoder(nn.Module):
    """Two residual blocks and two transposed convolutions: H/4 x W/4 code vectors become H x W pixels."""

    def __init__(self, config: LabelsConfig, code_dim: int, classes: int) -> None:
        super().__init__()
        C, self.classes = config.channels, classes
        self.layers = nn.Sequential(
            nn.Conv2d(code_dim, C, 3, padding=1),  # (B, C, H/4, W/4)
            ResidualBlock(C, C // 2),
            ResidualBlock(C, C // 2),
            nn.ReLU(),
            nn.ConvTranspose2d(C, C // 2, 4, stride=2, padding=1),  # (B, C/2, H/2, W/2)
            nn.ReLU(),
            nn.ConvTranspose2d(C // 2, classes, 4, stride=2, padding=1),  # (B, K, H, W)
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Code vectors (B, D, H/4, W/4) -> logits (B, K, H, W) of K classes."""
        return self.layers(vectors)

    @torch.no_grad()
    def label_map(self, vectors: torch.Tensor) -> torch.Tensor:
        """Code vectors (B, D, H/4, W/4) -> the class of each pixel (B, H, W) uint8."""
        return self(vectors).argmax(1).to(torch.uint8)  # (B, H, W)
