"""A small network that describes a slice by numbers in which anatomy and texture can be compared."""

import torch
from torch import nn

TEXTURE, ANATOMY = 64, 128


class FeatureNetwork(nn.Module):
    """A slice -> 192 features: 64 means of an early layer, which know texture, and 128 numbers for what lies where.

    Learned from real slices alone (`oasisgen.training.features`): weights of photographs are neither needed nor loaded.
    """

    num_features = TEXTURE + ANATOMY  # the name by which torchmetrics asks

    def __init__(self) -> None:
        super().__init__()

        def halve(narrow: int, wide: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU())

        self.early = nn.Sequential(halve(1, 8), halve(8, 24), halve(24, TEXTURE))  # (B, 64, 32, 32)
        self.late = nn.Sequential(halve(TEXTURE, 96), halve(96, 128), nn.AvgPool2d(2), nn.Flatten())  # (B, 128*4*4)
        self.anatomy = nn.Linear(128 * 4 * 4, ANATOMY)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, 256, 256) in [-1, 1] -> (B, 192)."""
        h = self.early(x)  # (B, 64, 32, 32)
        return torch.cat([h.mean((2, 3)), self.anatomy(self.late(h))], 1)  # (B, 192)
