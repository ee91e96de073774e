from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from oasisgen.config.data import OASIS
from oasisgen.config.presets import FULL
from oasisgen.data.feed import Feed
from oasisgen.models.codes import VectorEmbedding
from oasisgen.models.masked import LEAST_VARIANCE, MaskedPrior, decoding_ends
from oasisgen.training.masked import held_out_loss, mask
from oasisgen.training.worker import Worker

SMALL = replace(FULL.masked, channels=4, components=3, decoding_steps=3, redrawn=0.2)
K = 32


@pytest.fixture
def prior() -> MaskedPrior:
    torch.manual_seed(0)
    return MaskedPrior(SMALL, VectorEmbedding(torch.randn(K, 4), torch.ones(K)), OASIS).eval()


def noise(prior: MaskedPrior, count: int) -> torch.Tensor:
    return torch.randn(count, prior.noise_size, generator=torch.Generator().manual_seed(1))


def test_every_map_is_a_valid_one_and_a_function_of_its_own_noise(prior: MaskedPrior) -> None:
    z, levels = noise(prior, 4), torch.tensor([0, 7, 7, 31])
    codes, image = (getattr(prior(z, levels), name) for name in ("codes", "image"))
    assert codes.shape == (4, 64, 64)
    assert 0 <= int(codes.min()) < int(codes.max()) < K
    assert torch.equal(image, prior.embedding.embed(codes))
    other = z.clone()
    other[[0, 1, 3]] = 0.0
    alone = prior(other, levels).codes
    assert torch.equal(alone[2], codes[2])
    assert not torch.equal(alone[1], codes[1])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_codes_are_drawn_as_often_as_the_predictor_expects_them(prior: MaskedPrior, temperature: float) -> None:
    """At temperature 1; below it the frequent ones more often."""
    prior.config = replace(SMALL, temperature=temperature, redrawn=0.0)
    logits = torch.linspace(-3, 1, K)
    torch.nn.init.zeros_(prior.predictor.head.weight)
    prior.predictor.head.bias.data.copy_(logits)
    codes = prior(noise(prior, 4), torch.zeros(4, dtype=torch.int64)).codes
    shares, expected = (
        torch.bincount(codes.flatten(), minlength=K) / codes.numel(),
        torch.softmax(logits / temperature, 0),
    )
    assert torch.allclose(shares, expected, atol=0.01)


def test_the_least_likely_codes_are_drawn_again_and_no_others(prior: MaskedPrior) -> None:
    logits = torch.linspace(-3, 1, K)  # the higher a code, the likelier
    torch.nn.init.zeros_(prior.predictor.head.weight)
    prior.predictor.head.bias.data.copy_(logits)
    z, levels = noise(prior, 2), torch.tensor([0, 31])
    after = prior(z, levels).codes.flatten(1)
    count = round(SMALL.redrawn * OASIS.codes)
    prior.config = replace(SMALL, redrawn=0.0)
    before = prior(z[:, : prior.noise_size], levels).codes.flatten(1)
    for first, last in zip(before, after, strict=True):
        again = first != last
        assert 0.8 * count < int(again.sum()) < count  # now and then the same code is drawn again
        assert int(first[again].max()) <= int(first.sort().values[count])
        assert last[again].float().mean() > first[again].float().mean() + 5


def test_without_codes_drawn_again_a_map_is_what_older_versions_drew(prior: MaskedPrior) -> None:
    prior.config = replace(SMALL, redrawn=0.0)
    z, levels = noise(prior, 2), torch.tensor([5, 20])
    low_rank = prior.low_rank_sample(prior.coefficients(z[:, :3], levels), levels)
    order, chance = torch.special.ndtr(z[:, 3:]).chunk(2, 1)
    order, codes = order.argsort(1), torch.zeros(2, OASIS.codes, dtype=torch.int64)
    masked = torch.ones_like(codes, dtype=torch.bool)
    for first, end in pairwise(decoding_ends(OASIS.codes, SMALL.decoding_steps)):
        image, at = prior.embedding.embed(codes.view(2, 64, 64)), order[:, first:end]
        logits = prior.predictor(image, masked.view(2, 1, 64, 64), low_rank, levels, at)  # (B, N, K)
        reached = (logits / SMALL.temperature).softmax(2).cumsum(2)
        codes.scatter_(1, at, torch.searchsorted(reached, chance.gather(1, at)[:, :, None]).squeeze(2))
        masked.scatter_(1, at, False)
    assert torch.equal(prior(z, levels).codes.flatten(1), codes)


def test_the_held_out_loss_is_the_cross_entropy_of_every_code_once(prior: MaskedPrior) -> None:
    logits = torch.linspace(-3, 1, K)
    torch.nn.init.zeros_(prior.predictor.head.weight)
    prior.predictor.head.bias.data.copy_(logits)
    codes = np.random.default_rng(0).integers(0, K, (20, 64, 64)).astype(np.uint16)
    loss = held_out_loss(
        prior, Feed([{"codes": codes, "level": np.arange(20)}]), 0, Worker(0, 1, torch.device("cpu"), None)
    )
    assert loss == pytest.approx(float(-logits.log_softmax(0)[codes.astype(int)].mean()), rel=1e-5)


def test_the_predictor_sees_what_is_not_masked_and_nothing_else(prior: MaskedPrior) -> None:
    torch.manual_seed(2)
    image, low_rank, levels = torch.randn(1, 4, 64, 64), torch.zeros(1, 4, 64, 64), torch.tensor([3])
    masked = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    masked[:, :, :32] = True
    positions = torch.arange(OASIS.codes)[None]
    before = prior.predictor(image, masked, low_rank, levels, positions)
    hidden, seen = image.clone(), image.clone()
    hidden[:, :, :32] += 1.0
    seen[:, :, 32:] += 1.0
    assert torch.equal(prior.predictor(hidden, masked, low_rank, levels, positions), before)
    assert not torch.allclose(prior.predictor(seen, masked, low_rank, levels, positions), before)


def test_decoding_steps_fill_in_every_position_once() -> None:
    ends = decoding_ends(OASIS.codes, 12)
    assert (ends[0], ends[-1], len(ends)) == (0, OASIS.codes, 13)
    assert ends == sorted(ends)
    assert ends[1] - ends[0] < ends[-1] - ends[-2]  # few while little is known


def test_training_predicts_masked_positions_and_masks_every_share() -> None:
    masked, positions = mask(torch.zeros(64, 64, 64), 100, torch.Generator().manual_seed(0))
    assert masked.gather(1, positions).all()
    assert all(len(row.unique()) == 100 for row in positions)
    shares = masked.float().mean(1)
    assert shares.min() < 0.3
    assert shares.max() > 0.95
    assert shares.min() >= 100 / OASIS.codes


def test_low_rank_samples_are_as_varied_as_the_maps_they_come_from() -> None:
    """Maps that are a mixture of two: the component between them is found, and noise spreads as its weights do."""
    random = torch.Generator().manual_seed(0)
    embedding = VectorEmbedding(torch.randn(K, 4, generator=random), torch.ones(K))
    two = torch.randint(0, K, (2, 64, 64), generator=random)
    rows = torch.randint(0, 2, (256,), generator=random)
    prior = MaskedPrior(replace(SMALL, components=1), embedding, OASIS)
    weights = prior.fit(lambda: [(two[rows], torch.zeros(256, dtype=torch.int64))])  # (N, 1)
    assert torch.allclose(
        prior.low_rank_sample(weights, torch.zeros(256, dtype=torch.int64)), embedding.embed(two[rows]), atol=0.03
    )
    assert float(prior.cholesky[0]) == pytest.approx(float(weights.std()), rel=0.01)


def test_a_level_of_few_maps_spreads_as_all_levels_do_and_one_of_many_as_its_own() -> None:
    """Few maps: their own covariance would have as many directions, and samples would be mixtures of these maps."""
    random = torch.Generator().manual_seed(0)
    embedding = VectorEmbedding(torch.randn(K, 4, generator=random), torch.ones(K))
    levels = torch.cat([torch.zeros(4, dtype=torch.int64), torch.ones(160, dtype=torch.int64)])
    maps = torch.randint(0, K, (len(levels), 64, 64), generator=random)
    prior = MaskedPrior(replace(SMALL, components=8), embedding, OASIS)
    weights = prior.fit(lambda: [(maps, levels)])  # (N, 8)
    few, many = (cholesky @ cholesky.t() for cholesky in prior.cholesky[:2])
    everything = torch.cov(weights.t())
    assert torch.allclose(few, everything, atol=1e-3)
    assert torch.allclose(many, 0.95 * torch.cov(weights[4:].t()) + 0.05 * everything, atol=1e-3)


def informed(random: torch.Generator, maps: torch.Tensor) -> MaskedPrior:
    """An untrained prior that was fitted to maps (N, 64, 64) of level 0, and that uses the low-rank logits."""
    embedding = VectorEmbedding(torch.randn(K, 4, generator=random), torch.ones(K))
    prior = MaskedPrior(replace(SMALL, components=1, low_rank_logits=True), embedding, OASIS)
    prior.fit(lambda: [(maps, torch.zeros(len(maps), dtype=torch.int64))])
    return prior.eval()


def test_low_rank_logits_are_those_of_a_gaussian_around_each_code() -> None:
    random = torch.Generator().manual_seed(0)
    prior = informed(random, torch.randint(0, K, (20, 64, 64), generator=random))
    low_rank, levels = torch.randn(2, 4, 64, 64, generator=random), torch.tensor([0, 9])
    positions = torch.randint(0, OASIS.codes, (2, 5), generator=random)
    with torch.autocast("cpu", torch.bfloat16):
        logits = prior.low_rank_logits(low_rank, levels, positions).log_softmax(2)
    for row, its in enumerate(positions.tolist()):
        for column, position in enumerate(its):
            sample, deviation = (
                of.flatten(1)[:, position] for of in (low_rank[row], prior.certainty[levels[row]] ** -0.5)
            )
            gaussian = torch.distributions.Normal(prior.embedding.weight, deviation).log_prob(sample).sum(1)  # (K,)
            assert torch.allclose(logits[row, column], gaussian.log_softmax(0), atol=1e-4)
    assert torch.equal(prior.certainty[9], prior.certainty[0])  # a level without maps: over all levels
    assert prior.certainty.max() <= 1 / LEAST_VARIANCE


def test_an_untrained_prior_with_low_rank_logits_generates_maps_like_those_it_was_fitted_to() -> None:
    """Maps that agree in one half and are noise in the other."""
    random = torch.Generator().manual_seed(1)
    maps = torch.randint(0, K, (40, 64, 64), generator=random)
    maps[:, :, :32] = maps[0, :, :32]
    prior, levels = informed(random, maps), torch.zeros(4, dtype=torch.int64)
    agree = (prior(noise(prior, 4), levels).codes == maps[0]).float().mean((0, 1))  # (64,)
    prior.config = replace(prior.config, low_rank_logits=False)
    without = (prior(noise(prior, 4), levels).codes == maps[0]).float().mean((0, 1))
    assert agree[:32].mean() > 0.9
    assert without[:32].mean() < 0.2
    assert agree[32:].mean() < 0.4
