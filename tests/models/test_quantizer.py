import pytest
import torch

from oasisgen.models.quantizer import EMAQuantizer, GradientQuantizer, nearest, perplexity

K, D = 7, 3


def slow_nearest(z: torch.Tensor, codebook: torch.Tensor) -> list[int]:
    """By definition: the least squared distance, vector by vector."""
    return [min(range(len(codebook)), key=lambda k: float(((v - codebook[k]) ** 2).sum())) for v in z]


def vectors(z: torch.Tensor) -> torch.Tensor:
    """(B, D, H, W) -> (B*H*W, D)."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def random_z(seed: int) -> torch.Tensor:
    return torch.randn(2, D, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_nearest_agrees_with_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(200, D, generator=generator), torch.randn(K, D, generator=generator)
    assert nearest(z, codebook).tolist() == slow_nearest(z, codebook)


def test_ema_update_agrees_with_a_slow_reference() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(K, D, commitment=0.25, decay=0.9, dead_below=0.0)
    quantizer.ema_count.fill_(2.0)
    quantizer.ema_sum.copy_(quantizer.codebook * 2.0)
    count = [2.0] * K
    total = [quantizer.codebook[k].clone() * 2.0 for k in range(K)]
    codebook = quantizer.codebook.clone()
    for step in range(5):
        z, before = random_z(step), quantizer.codebook.clone()
        out = quantizer(z)
        assert torch.equal(quantizer.codebook, before)  # it moves when the step ends
        quantizer.step()
        codes = slow_nearest(vectors(z), codebook)
        assert out.codes.flatten().tolist() == codes
        picked = torch.stack([codebook[k] for k in codes])
        assert torch.allclose(vectors(out.vectors), picked, atol=1e-6)
        assert float(out.loss) == pytest.approx(0.25 * float(((vectors(z) - picked) ** 2).mean()), rel=1e-5)
        for k in range(K):
            mine = [v for v, code in zip(vectors(z), codes, strict=True) if code == k]
            count[k] = 0.9 * count[k] + 0.1 * len(mine)
            total[k] = 0.9 * total[k] + 0.1 * (torch.stack(mine).sum(0) if mine else torch.zeros(D))
            codebook[k] = total[k] / count[k]
        assert torch.allclose(quantizer.codebook, codebook, atol=1e-5)


def test_a_dead_code_starts_again_at_an_encoder_output_and_its_average_with_it() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(K, D, commitment=0.25, decay=0.99, dead_below=0.1)
    quantizer.ema_count.fill_(10.0)
    quantizer.codebook[3] = 1e3  # no vector is near it
    quantizer.ema_sum.copy_(quantizer.codebook * 10.0)
    quantizer.ema_count[3], quantizer.ema_sum[3] = 1e-3, 1.0
    z = random_z(1)
    quantizer(z, torch.Generator().manual_seed(5))
    quantizer.step()
    revived = quantizer.codebook[3]
    assert (vectors(z) - revived).abs().sum(1).min() < 1e-5
    assert torch.allclose(quantizer.ema_sum[3] / quantizer.ema_count[3], revived)
    assert int((quantizer(z).codes == 3).sum()) > 0


def test_a_fresh_codebook_is_placed_by_its_first_batch() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(K, D, commitment=0.25, decay=0.99, dead_below=0.03)
    z = random_z(0) + 100.0
    quantizer(z)
    quantizer.step()
    assert vectors(z).min() - 1 < quantizer.codebook.min()
    assert float(quantizer(z).loss) < 3.0


def test_in_training_forward_and_step_alternate() -> None:
    quantizer = EMAQuantizer(K, D, commitment=0.25, decay=0.9, dead_below=0.5)
    with pytest.raises(AssertionError, match="a step without a forward pass"):
        quantizer.step()
    quantizer(random_z(0))
    with pytest.raises(AssertionError, match="two forward passes"):
        quantizer(random_z(1))
    quantizer.step()
    with pytest.raises(AssertionError, match="a step without a forward pass"):
        quantizer.step()
    quantizer(random_z(1))


def test_evaluation_moves_nothing() -> None:
    quantizer = EMAQuantizer(K, D, commitment=0.25, decay=0.9, dead_below=0.5).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(random_z(0))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_the_gradient_passes_straight_through(kind: str) -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(K, D, 0.0, 0.9, 0.0).eval() if kind == "ema" else GradientQuantizer(K, D, 0.0)
    z = random_z(0).requires_grad_()
    weight = random_z(9)
    (quantizer(z).vectors * weight).sum().backward()
    assert torch.allclose(z.grad, weight)  # type: ignore[arg-type]


def test_the_gradient_quantizers_loss_is_equation_three() -> None:
    torch.manual_seed(0)
    quantizer = GradientQuantizer(K, D, commitment=0.7)
    assert float(quantizer.codebook.detach().abs().max()) <= 1.0 / K
    z = random_z(0).requires_grad_()
    out = quantizer(z)
    error = (vectors(z) - quantizer.codebook[out.codes.flatten()]).detach()
    assert float(out.loss.detach()) == pytest.approx(1.7 * float((error**2).mean()), rel=1e-5)
    out.loss.backward()
    assert torch.allclose(vectors(z.grad), 0.7 * 2.0 * error / error.numel(), atol=1e-7)  # type: ignore[arg-type]
    assert int((quantizer.codebook.grad.abs().sum(1) > 0).sum()) == len(torch.unique(out.codes))  # type: ignore


def test_perplexity_counts_codes_that_share_the_work() -> None:
    assert float(perplexity(torch.tensor([5, 0, 0, 0]))) == pytest.approx(1.0)
    assert float(perplexity(torch.tensor([5, 5, 5, 5]))) == pytest.approx(4.0)
    assert float(perplexity(torch.tensor([3, 1]))) == pytest.approx(1.7547, rel=1e-4)


def test_codes_do_not_depend_on_mixed_precision() -> None:
    torch.manual_seed(0)
    quantizer = EMAQuantizer(512, 4, 0.25, 0.99, 0.03).eval()
    z = torch.randn(2, 4, 32, 32) + 3.0
    expected = quantizer.encode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), expected)
