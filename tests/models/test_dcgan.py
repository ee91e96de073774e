from dataclasses import replace

import pytest
import torch

from oasisgen.config.data import OASIS
from oasisgen.config.presets import BASELINE, FULL
from oasisgen.config.train import DCGANConfig
from oasisgen.models.codes import CodeEmbedding, IndexEmbedding, PCAPrior, VectorEmbedding, make_embedding
from oasisgen.models.dcgan import DCGAN, Discriminator, discriminator_input, shift_each

SMALL = replace(FULL.dcgan, channels=4, latent_dim=6, components=3)
SMALL_BASELINE = replace(BASELINE.dcgan, channels=4, latent_dim=6)
CODEBOOK = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["vector", "index"])
def embedding(request: pytest.FixtureRequest) -> CodeEmbedding:
    config = SMALL if request.param == "vector" else SMALL_BASELINE
    return make_embedding(config, CODEBOOK, torch.arange(32) + 1)


def test_quantizing_undoes_embedding(embedding: CodeEmbedding) -> None:
    codes = torch.randint(0, 32, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    image = embedding.embed(codes)
    raw = image if isinstance(embedding, VectorEmbedding) else torch.atanh(image.clamp(-0.9999, 0.9999))
    assert torch.equal(embedding.quantize(raw).codes, codes)


def test_every_quantized_map_is_a_valid_code_map(embedding: CodeEmbedding) -> None:
    for scale in (0.01, 1.0, 100.0):
        raw = torch.randn(2, embedding.channels, 64, 64, generator=torch.Generator().manual_seed(2)) * scale
        codes = embedding.quantize(raw).codes
        assert codes.dtype == torch.int64
        assert 0 <= int(codes.min()) <= int(codes.max()) < 32


def test_embedded_codes_are_standardised_by_how_often_codes_occur() -> None:
    usage = torch.arange(32) + 1
    embedding = VectorEmbedding(CODEBOOK, usage)
    sample = embedding.weight.repeat_interleave(usage, 0)
    assert torch.allclose(sample.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(sample.std(0, correction=0), torch.ones(4), atol=1e-5)


def test_the_discriminator_sees_codes_and_the_generator_feels_it() -> None:
    embedding = VectorEmbedding(CODEBOOK, torch.ones(32))
    raw = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    image = embedding.quantize(raw).image
    assert torch.allclose(image, embedding.embed(embedding.quantize(raw).codes), atol=1e-6)
    image.sum().backward()
    assert torch.equal(raw.grad, torch.ones_like(raw))  # type: ignore[arg-type]


def test_the_baseline_embeds_codes_as_grey_values() -> None:
    embedding = IndexEmbedding(512)
    assert embedding.embed(torch.tensor([[[0, 511]]])).flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("config", [SMALL, SMALL_BASELINE], ids=["full", "baseline"])
def test_both_networks_fit_together(config: DCGANConfig) -> None:
    torch.manual_seed(0)
    gan = DCGAN(config, make_embedding(config, CODEBOOK, torch.ones(32)), OASIS)
    discriminator = Discriminator(config, gan.embedding.channels, OASIS)
    z, levels = torch.randn(3, 6), torch.tensor([0, 15, 31])
    generated = gan(z, levels)
    discriminator(generated.image, levels).sum().backward()
    assert [name for name, p in gan.named_parameters() if p.grad is None] == []
    other = gan(z, torch.tensor([5, 6, 7])).image
    assert torch.equal(generated.image, other) is not config.conditional


def test_shifted_maps_are_moved_each_on_its_own_with_the_border_repeated() -> None:
    images = torch.arange(64.0).expand(8, 1, 64, 64)  # a ramp along x
    moved = shift_each(images, 4, torch.Generator().manual_seed(0))
    starts = moved[:, 0, 0, 32] - 32
    assert len(torch.unique(starts)) > 2
    assert starts.abs().max() <= 4
    for image, start in zip(moved, starts, strict=True):
        assert torch.equal(image[0, 0], (torch.arange(64.0) + start).clamp(0, 63))
    assert shift_each(images, 0, torch.Generator()) is images


def test_the_discriminator_sees_noise_and_the_baselines_does_not() -> None:
    images = torch.zeros(2, 4, 64, 64)
    seen = discriminator_input(images, replace(SMALL, shift=0, noise=0.5), torch.Generator().manual_seed(0))
    assert float(seen.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(discriminator_input(images, SMALL_BASELINE, torch.Generator()), images)


def test_the_pca_prior_holds_the_mean_and_spread_of_each_levels_maps() -> None:
    embedding = VectorEmbedding(CODEBOOK, torch.ones(32))
    generator = torch.Generator().manual_seed(4)
    levels = torch.arange(600) % 31  # no map of level 31
    codes = torch.randint(0, 32, (600, 64, 64), generator=generator)
    codes[:, 0, 0] = 7  # a corner where no map differs from another
    pca_prior = PCAPrior(4, 3, OASIS)
    pca_prior.fit(lambda: [(codes, levels)], embedding)
    mine = embedding.embed(codes[levels == 5])
    assert torch.allclose(pca_prior.mean[5], mine.mean(0), atol=1e-5)
    assert torch.allclose(pca_prior.spread[5, :, 1:], mine.std(0, correction=0)[:, 1:], atol=1e-3)
    assert torch.allclose(pca_prior.mean[31], embedding.embed(codes).mean(0), atol=1e-4)
    raw, z = torch.randn(2, 4, 64, 64, generator=generator) * 9, torch.randn(2, 6, generator=generator)
    generated = embedding.quantize(pca_prior(raw, z, torch.tensor([0, 31]))).codes
    assert generated[:, 0, 0].tolist() == [7, 7]


def test_components_alone_make_maps_that_vary_as_the_training_maps_do() -> None:
    """Maps of two independent causes: two components must give back the deviation of each place."""
    embedding = VectorEmbedding(CODEBOOK, torch.ones(32))
    causes = torch.randint(0, 2, (400, 2), generator=torch.Generator().manual_seed(5))
    codes = torch.zeros(400, 64, 64, dtype=torch.int64)
    codes[:, :32] += causes[:, :1, None]
    codes[:, 32:] += 3 * causes[:, 1:, None]
    levels = torch.zeros(400, dtype=torch.int64)
    pca_prior = PCAPrior(4, 2, OASIS)
    pca_prior.fit(lambda: [(codes, levels)], embedding)
    z = torch.randn(3000, 2, generator=torch.Generator().manual_seed(6))
    maps = pca_prior(torch.zeros(1, 4, 64, 64), z, torch.zeros(3000, dtype=torch.int64))
    assert torch.allclose(maps.std(0), embedding.embed(codes).std(0), rtol=0.1, atol=0.05)
    halves = maps[:, 0, 0, 0], maps[:, 0, 63, 63]
    assert abs(float(torch.corrcoef(torch.stack(halves))[0, 1])) < 0.25
