"""Distances between two sets of feature vectors, and how much they overlap."""

import warnings

import torch
from torch import nn

NEIGHBOURS = 5  # k
KID_SUBSETS = 50
KID_SUBSET_SIZE = 256  # features in each; fewer if a set is smaller


class Given(nn.Module):
    """An identity in place of the network that torchmetrics expects: the features are already computed."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, F) -> (N, F)."""
        return features


def frechet_distance(real: torch.Tensor, synthetic: torch.Tensor) -> float:
    """FID between features (N, F) and (M, F) (Heusel et al. 2017, arXiv:1706.08500): 0 for equal moments."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # here: it takes seconds to import

    fid = FrechetInceptionDistance(feature=Given(real.shape[1])).set_dtype(torch.float64)
    fid.update(real.double(), real=True)
    fid.update(synthetic.double(), real=False)
    return float(fid.compute())


def kernel_distance(real: torch.Tensor, synthetic: torch.Tensor) -> float:
    """KID between features (N, F) and (M, F) (Bińkowski et al. 2018, arXiv:1801.01401): near 0 for one distribution."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KID_SUBSET_SIZE, len(real), len(synthetic))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        kid = KernelInceptionDistance(feature=Given(real.shape[1]), subsets=KID_SUBSETS, subset_size=size)
    kid.update(real, real=True)
    kid.update(synthetic, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator
        torch.manual_seed(0)
        return float(kid.compute()[0])


def manifold(real: torch.Tensor, synthetic: torch.Tensor) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al. 2020,
    arXiv:2002.09797) of features (N, F) and (M, F).

    The ball of a point reaches to the point's k-th nearest neighbour in its own set. precision: share of synthetic
    points in some real ball; recall: share of real points in some synthetic ball; density: mean number of real balls
    that hold a synthetic point, over k; coverage: share of real balls that hold a synthetic point. All are in [0, 1],
    except that density may exceed 1.
    """
    between = torch.cdist(real, synthetic)  # (N, M)
    inside_real = between <= _radii(real)[:, None]  # (N, M)
    inside_synthetic = between <= _radii(synthetic)[None]  # (N, M)
    shares = {
        "precision": inside_real.any(0),
        "recall": inside_synthetic.any(1),
        "density": inside_real.sum(0) / NEIGHBOURS,
        "coverage": inside_real.any(1),
    }
    return {name: float(share.double().mean()) for name, share in shares.items()}


def _radii(points: torch.Tensor) -> torch.Tensor:
    """Distance of each of (N, F) to its k-th nearest neighbour, itself not counted: (N,)."""
    return torch.cdist(points, points).kthvalue(min(NEIGHBOURS + 1, len(points)), dim=1).values


def fidelity(real: torch.Tensor, synthetic: torch.Tensor) -> dict[str, float]:
    """All of the above, on features standardised with the mean and deviation of the real ones.

    Empty if a set has fewer than two slices.
    """
    if min(len(real), len(synthetic)) < 2:
        return {}
    mean, deviation = real.mean(0), real.std(0).clamp(min=1e-6)
    real, synthetic = (real - mean) / deviation, (synthetic - mean) / deviation
    distances = {"fid": frechet_distance(real, synthetic), "kid": kernel_distance(real, synthetic)}
    return distances | manifold(real, synthetic)
