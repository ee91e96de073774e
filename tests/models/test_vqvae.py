import torch
from torch import nn

from oasisgen.config.presets import BASELINE, FULL
from oasisgen.models.vqvae import VQVAE


def kinds(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_a_slice_becomes_a_code_map_and_a_slice_again() -> None:
    model = VQVAE(FULL.vqvae).eval()
    x = torch.rand(2, 1, 256, 256) * 2 - 1
    out = model(x)
    assert out.codes.shape == (2, 64, 64)
    assert out.image.shape == x.shape
    assert out.image.abs().max() <= 1
    assert torch.equal(model.encode(x), out.codes)
    assert torch.allclose(model.decode(out.codes), out.image, atol=1e-5)


def test_crops_are_fine_too() -> None:
    assert VQVAE(FULL.vqvae)(torch.zeros(1, 1, 32, 48)).codes.shape == (1, 8, 12)


def test_every_parameter_learns() -> None:
    for config in (FULL.vqvae, BASELINE.vqvae):
        torch.manual_seed(0)
        model = VQVAE(config)
        out = model(torch.rand(2, 1, 32, 32) * 2 - 1)
        (out.image.pow(2).mean() + out.quantizer_loss).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_seeds_network_is_the_reports() -> None:
    model = VQVAE(BASELINE.vqvae)
    assert kinds(model.encoder) == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", *["ResidualBlock"] * 2, "Identity"]
    assert kinds(model.decoder) == [
        "Identity",
        *["ResidualBlock"] * 2,
        "ReLU",
        "ConvTranspose2d",
        "BatchNorm2d",
        "ReLU",
        "ConvTranspose2d",
        "Tanh",
    ]
    first, second = model.encoder[0], model.encoder[3]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert (first.out_channels, first.kernel_size, first.stride) == (256, (4, 4), (2, 2))
    assert (second.out_channels, second.kernel_size, second.stride) == (256, (4, 4), (2, 2))
    assert model.quantizer.codebook.shape == (512, 256)
