import numpy as np
import pytest
import scipy.linalg
import torch

from oasisgen.metrics.fidelity import NEIGHBOURS, fidelity, frechet_distance, kernel_distance, manifold


def cloud(count: int, seed: int, centre: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    return centre + spread * torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_is_its_definition() -> None:
    a, b = cloud(300, 1).double(), cloud(200, 2, 0.5, 2.0).double()
    roots = scipy.linalg.sqrtm(np.cov(a.T.numpy()) @ np.cov(b.T.numpy()))
    spread = np.trace(np.cov(a.T.numpy()) + np.cov(b.T.numpy()) - 2 * roots.real)
    expected = float((a.mean(0) - b.mean(0)).pow(2).sum()) + spread
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_about_zero_for_one_source_and_repeatable() -> None:
    near, far = kernel_distance(cloud(400, 1), cloud(400, 2)), kernel_distance(cloud(400, 1), cloud(400, 2, 0.5))
    assert abs(near) < 0.1 * far
    assert kernel_distance(cloud(400, 1), cloud(400, 2)) == near


def test_manifold_measures_are_their_definitions() -> None:
    real, synthetic = cloud(40, 1), cloud(30, 2, 0.7)

    def radius(points: torch.Tensor, i: int) -> float:
        return sorted(float((points[i] - other).norm()) for other in points)[NEIGHBOURS]

    inside_real = np.array([[float((r - s).norm()) <= radius(real, i) for s in synthetic] for i, r in enumerate(real)])
    inside_synthetic = np.array(
        [[float((r - s).norm()) <= radius(synthetic, j) for j, s in enumerate(synthetic)] for r in real]
    )
    assert manifold(real, synthetic) == pytest.approx(
        {
            "precision": inside_real.any(0).mean(),
            "recall": inside_synthetic.any(1).mean(),
            "density": inside_real.sum() / NEIGHBOURS / len(synthetic),
            "coverage": inside_real.any(1).mean(),
        }
    )


def test_a_narrow_source_is_precise_and_recalls_little_a_wide_one_the_reverse() -> None:
    real = cloud(300, 1)
    narrow, wide = fidelity(real, cloud(300, 2, spread=0.2)), fidelity(real, cloud(300, 3, spread=4.0))
    assert narrow["precision"] > 0.95 > 0.3 > narrow["recall"]
    assert wide["precision"] < 0.3
    assert wide["recall"] > narrow["recall"]
    same = fidelity(real, cloud(300, 4))
    assert min(same["precision"], same["recall"], same["coverage"]) > 0.8
    assert same["fid"] < min(narrow["fid"], wide["fid"])


def test_the_scale_of_a_feature_does_not_matter() -> None:
    real, synthetic = cloud(200, 1), cloud(200, 2, 0.3)
    stretched = torch.tensor([1, 10, 100, 1, 0.1, 1.0])
    assert fidelity(real * stretched, synthetic * stretched) == pytest.approx(fidelity(real, synthetic), rel=1e-3)
